//! A Rollout that changes its adapters file: its entries are removed from the former file once they are in the new one,
//! whatever fails meanwhile.

use crate::{
    driver::SimRun,
    guide::{V1, installed},
    world::{Fault, World},
};
use jiff::SignedDuration;
use rollora_api::{operator_directives::OperatorDirectives, rollout::status::Phase};

const OLD: &str = "adapters";
const NEW: &str = "other";

fn set_adapters_ref(world: &mut World, name: &str) {
    world.edit_spec(|rollout| rollout.spec.adapters_ref.name = name.to_owned());
}

/// Patterns that the operator directives of this file list as managed.
fn managed_patterns(world: &World, file: &str) -> Vec<String> {
    let document = if world.file_name == file { &world.adapters } else { &world.unread_files[file].0 };
    document.directives_text.as_deref().map(|text| OperatorDirectives::parse(text).unwrap().managed).unwrap_or_default()
}

fn has_moved(world: &World) -> bool {
    managed_patterns(world, OLD).is_empty() && managed_patterns(world, NEW) == ["small-v*"]
}

fn check_moved(run: &mut SimRun) {
    run.run_until("its entries have moved", has_moved);
    run.run_until_phase(Phase::Succeeded);
    run.run_for(SignedDuration::from_secs(5));
    assert!(has_moved(&run.world()), "{}", run.log_text());
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
}

#[test]
fn entries_move_to_the_new_adapters_file() {
    let mut run = installed();
    assert_eq!(managed_patterns(&run.world(), OLD), ["small-v*"]);
    run.world().switch_adapters_file(NEW);
    set_adapters_ref(&mut run.world(), NEW);
    check_moved(&mut run);
    run.world().delete_rollout();
    run.run_until("its entries are removed", |world| world.deleted && managed_patterns(world, NEW).is_empty());
}

#[test]
fn entries_move_although_any_write_fails() {
    for fault in [Fault::LostResponse, Fault::Hang, Fault::Unavailable] {
        for write in 0..5 {
            let mut run = installed();
            let mut faults = vec![Fault::None; write];
            faults.push(fault);
            run.world().write_faults = faults.into();
            run.world().switch_adapters_file(NEW);
            set_adapters_ref(&mut run.world(), NEW);
            check_moved(&mut run);
        }
    }
}

#[test]
fn old_entries_stay_while_the_new_file_is_missing() {
    let mut run = installed();
    set_adapters_ref(&mut run.world(), "typo");
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(managed_patterns(&run.world(), OLD), ["small-v*"], "{}", run.log_text());
    set_adapters_ref(&mut run.world(), OLD);
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(managed_patterns(&run.world(), OLD), ["small-v*"], "the old file is named again\n{}", run.log_text());

    set_adapters_ref(&mut run.world(), "typo");
    run.run_for(SignedDuration::from_secs(1));
    run.world().delete_rollout();
    run.run_until("the old entries are removed", |world| world.deleted && managed_patterns(world, OLD).is_empty());
}
