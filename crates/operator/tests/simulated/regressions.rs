//! Regressions that the random schedules have found: for each the shortest sequence that once violated an invariant.

use crate::{
    driver::SimRun,
    schedules::{OperatorFault, WorldAction, apply_action, run_one_operator, run_two_operators, schedule_world},
};
use jiff::SignedDuration;
use rollora_api::rollout::{IntentKind, status::Phase};

/// A rejected adapter was tried on another server after the status was lost and a person retried.
#[test]
fn lost_status_after_rejection_crashes_no_second_server() {
    let crashing = Some(3);
    let actions = [
        WorldAction::ToggleServerReachable { server: 0 },
        WorldAction::ListAdapters { exist: 8, not_exist: 0 },
        WorldAction::Heal,
        WorldAction::Wait(1),
        WorldAction::DeleteStatus,
        WorldAction::SetIntent(IntentKind::Retry),
    ];
    run_one_operator(schedule_world(crashing, None), &actions, crashing).unwrap();
}

/// An operator that read an older file, in which the bad id was not listed yet, reverted the other operator's later
/// decisions, and with them the rejection.
#[test]
fn outdated_file_crashes_no_second_server() {
    let crashing = Some(3);
    let actions = [
        Ok(WorldAction::Wait(3)),
        Err(OperatorFault::SetLags(0, [0, 0, 301])),
        Ok(WorldAction::ListAdapters { exist: 8, not_exist: 0 }),
        Ok(WorldAction::Wait(2)),
    ];
    for seed in [163_925_140, 1, 2, 3] {
        run_two_operators(schedule_world(crashing, None), seed, &actions, crashing).unwrap();
    }
}

/// Weights that another writer set while the status was lost are adopted, also if no step has them, and stay until the
/// steps continue.
#[test]
fn unplanned_split_is_adopted_after_the_status_is_lost() {
    let mut run = SimRun::new(schedule_world(None, None));
    run.run_until_phase(Phase::Succeeded);
    apply_action(&mut run, &WorldAction::ListAdapters { exist: 3, not_exist: 0 });
    run.run_until_weights(&[("small-v1", 90), ("small-v2", 10)]);
    for action in [WorldAction::DeleteStatus, WorldAction::SwapWeights, WorldAction::TogglePaused] {
        apply_action(&mut run, &action);
    }
    run.run_until_phase(Phase::Paused);
    let weights = run.world().weights();
    assert_eq!(weights, [("small-v1".to_owned(), 10), ("small-v2".to_owned(), 90)]);
    apply_action(&mut run, &WorldAction::TogglePaused);
    run.run_until_weights(&[("small-v1", 50), ("small-v2", 50)]);
}

/// A trial was superseded, its pilot crashed, and the id became desired again before it was unloaded.
#[test]
fn id_returning_after_pilot_crash_is_tried_there_again() {
    let crashing = Some(2);
    let actions = [
        WorldAction::ListAdapters { exist: 4, not_exist: 0 },
        WorldAction::ListAdapters { exist: 12, not_exist: 0 },
        WorldAction::CrashServer { server: 0, seconds: 1 },
        WorldAction::ListAdapters { exist: 4, not_exist: 0 },
    ];
    run_one_operator(schedule_world(crashing, None), &actions, crashing).unwrap();
}

/// Every server waits for an adapter that serves but is not listed, which only the lost status recorded.
#[test]
fn message_names_awaited_id_after_the_status_is_lost() {
    let mut run = SimRun::new(schedule_world(None, None));
    run.run_until_phase(Phase::Succeeded);
    apply_action(&mut run, &WorldAction::DeleteRewrite);
    apply_action(&mut run, &WorldAction::DeleteStatus);
    apply_action(&mut run, &WorldAction::ListAdapters { exist: 0, not_exist: 0 });
    for server in 0..3 {
        apply_action(&mut run, &WorldAction::CrashServer { server, seconds: 1 });
    }
    run.run_for(SignedDuration::from_secs(5));
    let message = run.world().status().message;
    assert!(
        message.contains("waits for small-v1 and cannot load it, because it is not listed: list it again"),
        "{message}"
    );
    apply_action(&mut run, &WorldAction::ListAdapters { exist: 1, not_exist: 0 });
    run.run_until_phase(Phase::Succeeded);
}
