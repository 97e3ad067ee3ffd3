//! Which statuses are worth a write.

use super::*;
use rollora_api::rollout::status::{ObservedAdapters, RetiredAdapter, RetirementState, StepStatus};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn status() -> RolloutStatus {
    let step = StepStatus {
        index: 0,
        state: StepState::AwaitingResidency,
        entered_at: at(0),
        observed_millis: 0,
        observed_at: Some(at(0)),
    };
    RolloutStatus { step: Some(step), message: "waits".to_owned(), ..RolloutStatus::default() }
}

/// When a Rollout at rest says that the file is another one.
const FILE_DUE: i64 = 90;

/// Whether a change is written this many seconds after the last write.
fn is_written(seconds: i64, change: impl FnOnce(&mut RolloutStatus)) -> bool {
    is_written_after(&status(), seconds, change)
}

fn is_written_after(previous: &RolloutStatus, seconds: i64, change: impl FnOnce(&mut RolloutStatus)) -> bool {
    let mut next = previous.clone();
    if let Some(step) = &mut next.step {
        step.observed_at = Some(at(seconds));
    }
    change(&mut next);
    let decision = Decision { status: next, effects: Vec::new(), events: Vec::new(), requeue_after: None };
    throttle(previous, decision, at(FILE_DUE), at(seconds)).status != *previous
}

#[test]
fn mere_counts_wait_for_five_seconds_and_everything_else_is_written_at_once() {
    let counted = |status: &mut RolloutStatus| status.residency.resident = 2;
    let worded = |status: &mut RolloutStatus| status.message = "waits for others".to_owned();
    let moved = |status: &mut RolloutStatus| status.phase = Phase::Held;
    assert!(!is_written(5, counted));
    assert!(is_written(6, counted));
    assert!(!is_written(5, worded));
    let read = |status: &mut RolloutStatus| status.observed_adapters = Some(ObservedAdapters::default());
    assert!(!is_written(5, read));
    assert!(is_written(6, read));
    assert!(is_written(1, moved));
}

#[test]
fn a_rollout_at_rest_takes_its_time_to_say_that_the_file_is_another_one() {
    let mut at_rest = status();
    at_rest.step.as_mut().unwrap().state = StepState::Done;
    let read = |status: &mut RolloutStatus| status.observed_adapters = Some(ObservedAdapters::default());
    assert!(!is_written_after(&at_rest, FILE_DUE - 1, read));
    assert!(is_written_after(&at_rest, FILE_DUE, read));
    let moved = |status: &mut RolloutStatus| (status.observed_adapters, status.phase) = (None, Phase::Held);
    assert!(is_written_after(&at_rest, 1, moved));
    let counted = |status: &mut RolloutStatus| {
        read(status);
        status.residency.resident = 2;
    };
    assert!(is_written_after(&at_rest, 6, counted), "with other news");
    at_rest.retired.push(retired(RetirementState::Waiting));
    assert!(is_written_after(&at_rest, 6, read), "something is under way");
}

fn retired(state: RetirementState) -> RetiredAdapter {
    serde_json::from_value(serde_json::json!({
        "id": "chat-v1", "since": "2026-01-01T00:00:00Z", "state": state, "reason": "waits",
    }))
    .unwrap()
}

#[test]
fn a_look_that_finds_nothing_new_is_never_written() {
    assert!(!is_written(3600, |_| ()));
}

#[test]
fn a_count_that_waits_is_looked_at_again_when_it_is_due() {
    let mut next = status();
    next.residency.resident = 2;
    let decision = Decision { status: next, effects: Vec::new(), events: Vec::new(), requeue_after: None };
    assert_eq!(throttle(&status(), decision, at(FILE_DUE), at(2)).requeue_after, Some(Duration::from_millis(3500)));
}

#[test]
fn the_time_of_a_phase_changes_with_the_phase_alone() {
    let settled = |seconds: i64, previous: &RolloutStatus, change: &dyn Fn(&mut RolloutStatus)| {
        let mut status = previous.clone();
        change(&mut status);
        let decision = Decision { status, effects: Vec::new(), events: Vec::new(), requeue_after: None };
        throttle(previous, decision, at(FILE_DUE), at(seconds)).status
    };
    let held = settled(1, &status(), &|status| status.phase = Phase::Held);
    assert_eq!(held.phase_since, Some(at(1)));
    let elsewhere = settled(2, &held, &|status| status.revision.number = 7);
    assert_eq!((elsewhere.revision.number, elsewhere.phase_since), (7, Some(at(1))));
    let over = settled(3, &elsewhere, &|status| status.phase = Phase::Succeeded);
    assert_eq!(over.phase_since, Some(at(3)));
    assert_eq!(settled(4, &status(), &|_| ()), status(), "that alone is not worth a write");
}
