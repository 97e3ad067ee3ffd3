//! A Rollout that names another adapters file: its entries leave the one that it named before, when they stand in the new
//! one, and whatever goes wrong meanwhile.

use crate::{
    driver::Run,
    guide::{V1, installed},
    world::{Fault, World},
};
use jiff::SignedDuration;
use rollora_api::{operator_directives::OperatorDirectives, rollout::status::Phase};

const OLD: &str = "adapters";
const NEW: &str = "other";

fn name_file(world: &mut World, name: &str) {
    world.edit_spec(|rollout| rollout.spec.adapters_ref.name = name.to_owned());
}

/// What the operator's key of this file says to be governed.
fn governed(world: &World, file: &str) -> Vec<String> {
    let document = if world.file_name == file { &world.adapters } else { &world.unread[file].0 };
    document.key_text.as_deref().map(|text| OperatorDirectives::parse(text).unwrap().managed).unwrap_or_default()
}

fn has_moved(world: &World) -> bool {
    governed(world, OLD).is_empty() && governed(world, NEW) == ["small-v*"]
}

fn check_moved(run: &mut Run) {
    run.until("its entries have moved", has_moved);
    run.until_phase(Phase::Succeeded);
    run.run_for(SignedDuration::from_secs(5));
    assert!(has_moved(&run.world()), "{}", run.story());
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.story());
}

#[test]
fn entries_follow_to_the_file_that_is_named_now() {
    let mut run = installed();
    assert_eq!(governed(&run.world(), OLD), ["small-v*"]);
    run.world().read_another_file(NEW);
    name_file(&mut run.world(), NEW);
    check_moved(&mut run);
    run.world().delete();
    run.until("they leave with it", |world| world.gone && governed(world, NEW).is_empty());
}

#[test]
fn entries_follow_with_any_write_going_wrong() {
    for fault in [Fault::LostAnswer, Fault::Hang, Fault::Unavailable] {
        for write in 0..5 {
            let mut run = installed();
            let mut faults = vec![Fault::None; write];
            faults.push(fault);
            run.world().write_faults = faults.into();
            run.world().read_another_file(NEW);
            name_file(&mut run.world(), NEW);
            check_moved(&mut run);
        }
    }
}

#[test]
fn what_is_good_stays_while_the_new_file_is_not_there() {
    let mut run = installed();
    name_file(&mut run.world(), "typo");
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(governed(&run.world(), OLD), ["small-v*"], "{}", run.story());
    name_file(&mut run.world(), OLD);
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(governed(&run.world(), OLD), ["small-v*"], "it is named again\n{}", run.story());

    name_file(&mut run.world(), "typo");
    run.run_for(SignedDuration::from_secs(1));
    run.world().delete();
    run.until("they leave with it all the same", |world| world.gone && governed(world, OLD).is_empty());
}
