//! What the schedules have found, each as it was found: the shortest sequence that once hurt somebody.

use crate::{
    driver::SimRun,
    schedules::{OperatorFault, WorldAction, apply_action, run_one_operator, run_two_operators, schedule_world},
};
use jiff::SignedDuration;
use rollora_api::rollout::{IntentKind, status::Phase};

/// What was rejected was tried on another server when the status was lost and somebody
/// said `retry`.
#[test]
fn a_status_that_is_lost_after_a_rejection_lets_no_second_server_try() {
    let deadly = Some(3);
    let actions = [
        WorldAction::ToggleServerReachable { server: 0 },
        WorldAction::ListAdapters { exist: 8, not_exist: 0 },
        WorldAction::Heal,
        WorldAction::Wait(1),
        WorldAction::DeleteStatus,
        WorldAction::SetIntent(IntentKind::Retry),
    ];
    run_one_operator(schedule_world(deadly, None), &actions, deadly).unwrap();
}

/// One that read an older file, in which the deadly id was not listed yet, took back what
/// the other had decided since, and forgot with it that the id was rejected.
#[test]
fn one_that_hears_of_the_file_late_lets_no_second_server_try_what_was_rejected() {
    let deadly = Some(3);
    let actions = [
        Ok(WorldAction::Wait(3)),
        Err(OperatorFault::SetLags(0, [0, 0, 301])),
        Ok(WorldAction::ListAdapters { exist: 8, not_exist: 0 }),
        Ok(WorldAction::Wait(2)),
    ];
    for seed in [163_925_140, 1, 2, 3] {
        run_two_operators(schedule_world(deadly, None), seed, &actions, deadly).unwrap();
    }
}

/// What somebody else gave while the status was lost is adopted as it is, also where no
/// step has it, and stays until the steps go on.
#[test]
fn a_split_that_nobody_planned_is_adopted_where_the_status_was_lost() {
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

/// An id on trial was superseded, its pilot died, and it came back before it had gone.
#[test]
fn one_that_comes_back_after_its_pilot_has_died_is_tried_there_again() {
    let deadly = Some(2);
    let actions = [
        WorldAction::ListAdapters { exist: 4, not_exist: 0 },
        WorldAction::ListAdapters { exist: 12, not_exist: 0 },
        WorldAction::CrashServer { server: 0, seconds: 1 },
        WorldAction::ListAdapters { exist: 4, not_exist: 0 },
    ];
    run_one_operator(schedule_world(deadly, None), &actions, deadly).unwrap();
}

/// Every server waits for what serves and is not listed, and only the lost status said so.
#[test]
fn a_status_that_is_lost_does_not_hide_what_servers_wait_for() {
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
    assert!(message.contains("waits for small-v1, and cannot load what is not listed: list it again"), "{message}");
    apply_action(&mut run, &WorldAction::ListAdapters { exist: 1, not_exist: 0 });
    run.run_until_phase(Phase::Succeeded);
}
