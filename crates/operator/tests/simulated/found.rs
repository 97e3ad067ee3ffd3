//! What the schedules have found, each as it was found: the shortest sequence that once hurt somebody.

use crate::{
    driver::Run,
    schedules::{Action, Fate, act, one_alone, two_at_once, world},
};
use jiff::SignedDuration;
use rollora_api::rollout::{IntentKind, status::Phase};

/// What was rejected was tried on another server when the status was lost and somebody
/// said `retry`.
#[test]
fn a_status_that_is_lost_after_a_rejection_lets_no_second_server_try() {
    let deadly = Some(3);
    let actions = [
        Action::Unreachable { server: 0 },
        Action::List { exist: 8, not_exist: 0 },
        Action::Heal,
        Action::Wait(1),
        Action::LoseStatus,
        Action::Intend(IntentKind::Retry),
    ];
    one_alone(world(deadly, None), &actions, deadly).unwrap();
}

/// One that read an older file, in which the deadly id was not listed yet, took back what
/// the other had decided since, and forgot with it that the id was rejected.
#[test]
fn one_that_hears_of_the_file_late_lets_no_second_server_try_what_was_rejected() {
    let deadly = Some(3);
    let actions = [
        Ok(Action::Wait(3)),
        Err(Fate::Lag(0, [0, 0, 301])),
        Ok(Action::List { exist: 8, not_exist: 0 }),
        Ok(Action::Wait(2)),
    ];
    for seed in [163_925_140, 1, 2, 3] {
        two_at_once(world(deadly, None), seed, &actions, deadly).unwrap();
    }
}

/// What somebody else gave while the status was lost is adopted as it is, also where no
/// step has it, and stays until the steps go on.
#[test]
fn a_split_that_nobody_planned_is_adopted_where_the_status_was_lost() {
    let mut run = Run::new(world(None, None));
    run.until_phase(Phase::Succeeded);
    act(&mut run, &Action::List { exist: 3, not_exist: 0 });
    run.until_weights(&[("small-v1", 90), ("small-v2", 10)]);
    for action in [Action::LoseStatus, Action::Swap, Action::Pause] {
        act(&mut run, &action);
    }
    run.until_phase(Phase::Paused);
    let weights = run.world().weights();
    assert_eq!(weights, [("small-v1".to_owned(), 10), ("small-v2".to_owned(), 90)]);
    act(&mut run, &Action::Pause);
    run.until_weights(&[("small-v1", 50), ("small-v2", 50)]);
}

/// An id on trial was superseded, its pilot died, and it came back before it had gone.
#[test]
fn one_that_comes_back_after_its_pilot_has_died_is_tried_there_again() {
    let deadly = Some(2);
    let actions = [
        Action::List { exist: 4, not_exist: 0 },
        Action::List { exist: 12, not_exist: 0 },
        Action::Die { server: 0, seconds: 1 },
        Action::List { exist: 4, not_exist: 0 },
    ];
    one_alone(world(deadly, None), &actions, deadly).unwrap();
}

/// Every server waits for what serves and is not listed, and only the lost status said so.
#[test]
fn a_status_that_is_lost_does_not_hide_what_servers_wait_for() {
    let mut run = Run::new(world(None, None));
    run.until_phase(Phase::Succeeded);
    act(&mut run, &Action::Delete);
    act(&mut run, &Action::LoseStatus);
    act(&mut run, &Action::List { exist: 0, not_exist: 0 });
    for server in 0..3 {
        act(&mut run, &Action::Die { server, seconds: 1 });
    }
    run.run_for(SignedDuration::from_secs(5));
    let message = run.world().status().message;
    assert!(message.contains("waits for small-v1, and cannot load what is not listed: list it again"), "{message}");
    act(&mut run, &Action::List { exist: 1, not_exist: 0 });
    run.until_phase(Phase::Succeeded);
}
