//! A Rollout that is deleted never takes a model away, whenever that happens and whatever goes wrong meanwhile.

use crate::{
    driver::Run,
    guide::{ROLLOUT, V1, V2, at_half, installed},
    world::{Fault, World},
};
use jiff::SignedDuration;
use rollora_api::{operator_directives::OperatorDirectives, rollout::status::Phase};

fn governed(run: &Run) -> Vec<String> {
    OperatorDirectives::parse(run.world().adapters.key_text.as_deref().unwrap()).unwrap().managed
}

#[test]
fn deleted_at_half_it_gives_everything_back_first() {
    let mut run = at_half();
    assert_eq!(run.world().rollout.metadata.finalizers.len(), 1, "{}", run.story());
    run.world().delete();
    assert!(!run.world().gone);
    run.until("it is gone", |world| world.gone);
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.story());
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.story());
    assert!(governed(&run).is_empty(), "nobody governs its ids any more\n{}", run.story());
}

#[test]
fn deleted_while_stable_is_unlisted_it_gives_everything_to_what_stays() {
    let mut run = at_half();
    run.world().list(&[V2], &[V1]);
    run.run_for(SignedDuration::from_secs(2));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)], "{}", run.story());
    run.world().delete();
    run.until("it is gone", |world| world.gone);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().weights(), [(V2.to_owned(), 100)], "{}", run.story());
}

#[test]
fn deleted_while_nothing_is_split_it_goes_at_once_and_its_entries_follow() {
    let mut run = installed();
    assert!(run.world().rollout.metadata.finalizers.is_empty(), "{}", run.story());
    run.world().delete();
    assert!(run.world().gone, "nothing holds it back");
    run.until("its entries have left", |world| {
        OperatorDirectives::parse(world.adapters.key_text.as_deref().unwrap()).unwrap().managed.is_empty()
    });
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
}

#[test]
fn a_rewrite_that_is_gone_holds_no_deletion_back() {
    let mut run = at_half();
    run.world().rewrites.clear();
    run.world().delete();
    run.until("it is gone", |world| world.gone);
    assert!(run.world().rewrites.is_empty(), "it is not made again\n{}", run.story());
    assert!(run.world().events.iter().any(|event| event.message.contains("nothing to give back")), "{}", run.story());
}

#[test]
fn deleted_at_half_with_any_write_going_wrong_it_ends_the_same() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LostAnswer, Fault::Hang, Fault::Unavailable] {
        for write in 0..6 {
            let mut run = at_half();
            let mut faults = vec![Fault::None; write];
            faults.push(fault);
            run.world().write_faults = faults.into();
            run.world().delete();
            run.until("it is gone", |world| world.gone);
            assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{fault:?} at write {write}\n{}", run.story());
        }
    }
}

#[test]
fn the_guard_goes_when_the_rollout_has_succeeded_or_was_taken_back() {
    let mut world = World::new(&ROLLOUT.replace("pause: {}", "pause: { duration: 1s }"), 2, &[V1]);
    world.note("one that ends by itself");
    let mut run = Run::new(world);
    run.until_phase(Phase::Succeeded);
    run.world().list(&[V1, V2], &[]);
    run.until_weights(&[(V1, 50), (V2, 50)]);
    run.until_phase(Phase::Succeeded);
    run.until("the guard is gone", |world| world.rollout.metadata.finalizers.is_empty());
    let mut run = at_half();
    run.world().intend(rollora_api::rollout::IntentKind::Abort);
    run.until_phase(Phase::RolledBack);
    run.until("the guard is gone", |world| world.rollout.metadata.finalizers.is_empty());
}
