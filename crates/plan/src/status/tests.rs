//! Tests of the throttle: which changes of a status are written, and when.

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

/// The second at which an idle Rollout records a new version of the file.
const FILE_DUE: i64 = 90;

/// Returns whether a change is written this many seconds after the last write.
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
fn counts_are_throttled_and_other_changes_are_not() {
    let counted = |status: &mut RolloutStatus| status.residency.resident = 2;
    let reworded = |status: &mut RolloutStatus| status.message = "waits for others".to_owned();
    let moved = |status: &mut RolloutStatus| status.phase = Phase::Held;
    assert!(!is_written(5, counted));
    assert!(is_written(6, counted));
    assert!(!is_written(5, reworded));
    let read = |status: &mut RolloutStatus| status.observed_adapters = Some(ObservedAdapters::default());
    assert!(!is_written(5, read));
    assert!(is_written(6, read));
    assert!(is_written(1, moved));
}

#[test]
fn idle_rollout_delays_new_file_version() {
    let mut idle = status();
    idle.step.as_mut().unwrap().state = StepState::Done;
    let read = |status: &mut RolloutStatus| status.observed_adapters = Some(ObservedAdapters::default());
    assert!(!is_written_after(&idle, FILE_DUE - 1, read));
    assert!(is_written_after(&idle, FILE_DUE, read));
    let moved = |status: &mut RolloutStatus| (status.observed_adapters, status.phase) = (None, Phase::Held);
    assert!(is_written_after(&idle, 1, moved));
    let counted = |status: &mut RolloutStatus| {
        read(status);
        status.residency.resident = 2;
    };
    assert!(is_written_after(&idle, 6, counted), "together with another change");
    idle.retired.push(retired(RetirementState::Waiting));
    assert!(is_written_after(&idle, 6, read), "a retirement is in progress");
}

fn retired(state: RetirementState) -> RetiredAdapter {
    serde_json::from_value(serde_json::json!({
        "id": "chat-v1", "since": "2026-01-01T00:00:00Z", "state": state, "reason": "waits",
    }))
    .unwrap()
}

#[test]
fn unchanged_status_is_never_written() {
    assert!(!is_written(3600, |_| ()));
}

#[test]
fn throttled_count_is_requeued_when_due() {
    let mut next = status();
    next.residency.resident = 2;
    let decision = Decision { status: next, effects: Vec::new(), events: Vec::new(), requeue_after: None };
    assert_eq!(throttle(&status(), decision, at(FILE_DUE), at(2)).requeue_after, Some(Duration::from_millis(3500)));
}

#[test]
fn phase_since_changes_only_with_the_phase() {
    let settled = |seconds: i64, previous: &RolloutStatus, change: &dyn Fn(&mut RolloutStatus)| {
        let mut status = previous.clone();
        change(&mut status);
        let decision = Decision { status, effects: Vec::new(), events: Vec::new(), requeue_after: None };
        throttle(previous, decision, at(FILE_DUE), at(seconds)).status
    };
    let held = settled(1, &status(), &|status| status.phase = Phase::Held);
    assert_eq!(held.phase_since, Some(at(1)));
    let new_revision = settled(2, &held, &|status| status.revision.number = 7);
    assert_eq!((new_revision.revision.number, new_revision.phase_since), (7, Some(at(1))));
    let succeeded = settled(3, &new_revision, &|status| status.phase = Phase::Succeeded);
    assert_eq!(succeeded.phase_since, Some(at(3)));
    assert_eq!(settled(4, &status(), &|_| ()), status(), "an unset phaseSince alone causes no write");
}
