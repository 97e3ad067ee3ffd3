//! Deleting a Rollout never leaves its model unserved, at any time and whatever fails meanwhile.

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
fn deletion_at_half_waits_until_stable_has_all_weight() {
    let mut run = at_half();
    assert_eq!(run.world().rollout.metadata.finalizers.len(), 1, "{}", run.log_text());
    run.world().delete_rollout();
    assert!(!run.world().deleted);
    run.run_until("the Rollout is deleted", |world| world.deleted);
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    assert!(managed_patterns(&run).is_empty(), "its ids are not managed anymore\n{}", run.log_text());
}

#[test]
fn deletion_gives_all_weight_to_the_listed_adapter() {
    let mut run = at_half();
    run.world().list_adapters(&[V2], &[V1]);
    run.run_for(SignedDuration::from_secs(2));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)], "{}", run.log_text());
    run.world().delete_rollout();
    run.run_until("the Rollout is deleted", |world| world.deleted);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().weights(), [(V2.to_owned(), 100)], "{}", run.log_text());
}

#[test]
fn deletion_without_a_split_is_immediate() {
    let mut run = installed();
    assert!(run.world().rollout.metadata.finalizers.is_empty(), "{}", run.log_text());
    run.world().delete_rollout();
    assert!(run.world().deleted, "no finalizer delays it");
    run.run_until("its entries are removed", |world| {
        OperatorDirectives::parse(world.adapters.directives_text.as_deref().unwrap()).unwrap().managed.is_empty()
    });
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
}

#[test]
fn missing_rewrite_does_not_delay_deletion() {
    let mut run = at_half();
    run.world().rewrites.clear();
    run.world().delete_rollout();
    run.run_until("the Rollout is deleted", |world| world.deleted);
    assert!(run.world().rewrites.is_empty(), "it is not created again\n{}", run.log_text());
    assert!(
        run.world().events.iter().any(|event| event.message.contains("there is no weight to return to stable")),
        "{}",
        run.log_text()
    );
}

#[test]
fn deletion_at_half_survives_any_failed_write() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LostResponse, Fault::Hang, Fault::Unavailable] {
        for write in 0..6 {
            let mut run = at_half();
            let mut faults = vec![Fault::None; write];
            faults.push(fault);
            run.world().write_faults = faults.into();
            run.world().delete_rollout();
            run.run_until("the Rollout is deleted", |world| world.deleted);
            assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{fault:?} at write {write}\n{}", run.log_text());
        }
    }
}

#[test]
fn finalizer_is_removed_after_success_or_rollback() {
    let mut world = World::new(&ROLLOUT.replace("pause: {}", "pause: { duration: 1s }"), 2, &[V1]);
    world.log_event("a rollout without an open pause");
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("the finalizer is removed", |world| world.rollout.metadata.finalizers.is_empty());
    let mut run = at_half();
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("the finalizer is removed", |world| world.rollout.metadata.finalizers.is_empty());
}
