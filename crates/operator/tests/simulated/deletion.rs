//! A Rollout that is deleted never takes a model away, whenever that happens and whatever goes wrong meanwhile.

use crate::{
    driver::SimRun,
    guide::{ROLLOUT, V1, V2, at_half, installed},
    world::{Fault, World},
};
use jiff::SignedDuration;
use rollora_api::{operator_directives::OperatorDirectives, rollout::status::Phase};

fn managed_patterns(run: &SimRun) -> Vec<String> {
    OperatorDirectives::parse(run.world().adapters.directives_text.as_deref().unwrap()).unwrap().managed
}

#[test]
fn deleted_at_half_it_gives_everything_back_first() {
    let mut run = at_half();
    assert_eq!(run.world().rollout.metadata.finalizers.len(), 1, "{}", run.log_text());
    run.world().delete_rollout();
    assert!(!run.world().deleted);
    run.run_until("it is gone", |world| world.deleted);
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    assert!(managed_patterns(&run).is_empty(), "nobody governs its ids any more\n{}", run.log_text());
}

#[test]
fn deleted_while_stable_is_unlisted_it_gives_everything_to_what_stays() {
    let mut run = at_half();
    run.world().list_adapters(&[V2], &[V1]);
    run.run_for(SignedDuration::from_secs(2));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)], "{}", run.log_text());
    run.world().delete_rollout();
    run.run_until("it is gone", |world| world.deleted);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().weights(), [(V2.to_owned(), 100)], "{}", run.log_text());
}

#[test]
fn deleted_while_nothing_is_split_it_goes_at_once_and_its_entries_follow() {
    let mut run = installed();
    assert!(run.world().rollout.metadata.finalizers.is_empty(), "{}", run.log_text());
    run.world().delete_rollout();
    assert!(run.world().deleted, "nothing holds it back");
    run.run_until("its entries have left", |world| {
        OperatorDirectives::parse(world.adapters.directives_text.as_deref().unwrap()).unwrap().managed.is_empty()
    });
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
}

#[test]
fn a_rewrite_that_is_gone_holds_no_deletion_back() {
    let mut run = at_half();
    run.world().rewrites.clear();
    run.world().delete_rollout();
    run.run_until("it is gone", |world| world.deleted);
    assert!(run.world().rewrites.is_empty(), "it is not made again\n{}", run.log_text());
    assert!(
        run.world().events.iter().any(|event| event.message.contains("nothing to give back")),
        "{}",
        run.log_text()
    );
}

#[test]
fn deleted_at_half_with_any_write_going_wrong_it_ends_the_same() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LostResponse, Fault::Hang, Fault::Unavailable] {
        for write in 0..6 {
            let mut run = at_half();
            let mut faults = vec![Fault::None; write];
            faults.push(fault);
            run.world().write_faults = faults.into();
            run.world().delete_rollout();
            run.run_until("it is gone", |world| world.deleted);
            assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{fault:?} at write {write}\n{}", run.log_text());
        }
    }
}

#[test]
fn the_guard_goes_when_the_rollout_has_succeeded_or_was_taken_back() {
    let mut world = World::new(&ROLLOUT.replace("pause: {}", "pause: { duration: 1s }"), 2, &[V1]);
    world.log_event("one that ends by itself");
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("the guard is gone", |world| world.rollout.metadata.finalizers.is_empty());
    let mut run = at_half();
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("the guard is gone", |world| world.rollout.metadata.finalizers.is_empty());
}
