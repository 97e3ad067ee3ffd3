//! The traffic machine alone: each transition, and what must never change.

use super::*;
use crate::wait::RequeueWhen;
use rollora_api::rollout::spec::Pause;

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn weight(weight: i32) -> Step {
    Step { set_weight: Some(weight), pause: None }
}

fn pause() -> Step {
    Step { set_weight: None, pause: Some(Pause::default()) }
}

fn strategy(steps: Vec<Step>) -> Strategy {
    Strategy { steps, ..Strategy::default() }
}

/// A status in which v1 serves everything.
fn stable() -> RolloutStatus {
    let step =
        StepStatus { index: 0, state: StepState::Done, entered_at: at(0), observed_millis: 0, observed_at: None };
    let weights = TrafficWeights {
        desired: vec![TargetWeight { id: id("v1"), weight: FULL_WEIGHT }],
        ..TrafficWeights::default()
    };
    RolloutStatus {
        revision: Revision { number: 1, stable: Some(id("v1")), desired: Some(id("v1")) },
        total_weight: 100,
        step: Some(step),
        weights,
        ..RolloutStatus::default()
    }
}

fn weights(status: &RolloutStatus) -> Vec<(&str, i32)> {
    status.weights.desired.iter().map(|target| (target.id.as_str(), target.weight)).collect()
}

fn open() -> ResidencyGate {
    ResidencyGate { resident: 1, ready: 1, missing: Vec::new() }
}

fn proof(complete: bool) -> RouterProof {
    let wait = (!complete).then(|| Wait::soon(reason::ROUTERS_PENDING, "waits for routers"));
    RouterProof { proven: 0, total: 1, wait, shadowed_by: None }
}

/// One decision at `now`.
fn advance(
    status: &mut RolloutStatus,
    strategy: &Strategy,
    gate: &ResidencyGate,
    proven: bool,
    now: Timestamp,
) -> Vec<Wait> {
    let proof = proof(proven);
    let scene = TrafficInputs {
        now,
        paused: false,
        strategy,
        observation_attempted: true,
        fully_observed: true,
        servers: Some(&[]),
        gate: Some(gate),
        residency_wait: None,
        proof: &proof,
    };
    TrafficMachine::from_status(status).advance(scene)
}

fn start_rollout(strategy: &Strategy) -> RolloutStatus {
    let mut status = stable();
    TrafficMachine::from_status(&mut status).begin_revision(&id("v2"), strategy, false, at(0));
    status
}

#[test]
fn weight_is_given_when_the_gate_is_open_and_the_next_step_waits_for_the_proof() {
    let strategy = strategy(vec![weight(10), weight(50)]);
    let mut status = start_rollout(&strategy);
    let closed = ResidencyGate { ready: 1, missing: vec!["a: is loading it".to_owned()], ..ResidencyGate::default() };
    assert_eq!(advance(&mut status, &strategy, &closed, true, at(1))[0].reason, reason::NOT_RESIDENT);
    assert_eq!(weights(&status), [("v1", 100)]);
    advance(&mut status, &strategy, &open(), true, at(2));
    assert_eq!(weights(&status), [("v1", 90), ("v2", 10)]);
    advance(&mut status, &strategy, &open(), false, at(3));
    assert_eq!(weights(&status), [("v1", 90), ("v2", 10)], "not proven yet");
    advance(&mut status, &strategy, &open(), true, at(4));
    assert_eq!(weights(&status), [("v1", 50), ("v2", 50)]);
    assert_eq!(status.weights.sequence.0, 2, "one sequence for each change");
}

#[test]
fn after_the_last_step_everything_goes_to_the_desired_adapter_whatever_the_last_weight_was() {
    let strategy = strategy(vec![weight(30)]);
    let mut status = start_rollout(&strategy);
    for seconds in 1..6 {
        advance(&mut status, &strategy, &open(), true, at(seconds));
    }
    assert_eq!(weights(&status), [("v2", 100)]);
    assert_eq!(status.revision.stable, Some(id("v2")));
    assert_eq!(status.step.map(|step| step.state), Some(StepState::Done));
}

#[test]
fn stable_changes_only_when_everything_is_proven() {
    let strategy = strategy(Vec::new());
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v2", 100)]);
    advance(&mut status, &strategy, &open(), false, at(2));
    assert_eq!(status.revision.stable, Some(id("v1")));
}

#[test]
fn a_first_install_skips_the_steps() {
    let strategy = strategy(vec![weight(10), pause()]);
    let mut status = RolloutStatus::default();
    TrafficMachine::from_status(&mut status).begin_revision(&id("v1"), &strategy, false, at(0));
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
}

#[test]
fn a_weight_of_zero_is_left_out() {
    let strategy = strategy(vec![weight(0), pause()]);
    let mut status = start_rollout(&strategy);
    let waits = advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((waits[0].reason, waits[0].requeue), (reason::AWAITING_PROMOTION, RequeueWhen::OnChange));
}

#[test]
fn an_abort_is_one_change_of_weights_and_refused_once_it_succeeded() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let before = status.weights.sequence;
    assert!(TrafficMachine::from_status(&mut status).abort(at(2)).is_ok());
    assert_eq!((weights(&status), status.weights.sequence), (vec![("v1", 100)], before.next()));
    assert_eq!(status.rejected[0].id, id("v2"));
    assert!(TrafficMachine::from_status(&mut stable()).abort(at(2)).is_err());
}

#[test]
fn a_failure_without_a_resident_stable_holds_its_weight() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let wait = TrafficMachine::from_status(&mut status).fail("it broke", reason::DEADLINE_EXCEEDED, Some(&[]), at(2));
    assert_eq!(wait.map(|wait| wait.reason), Some(reason::STABLE_NOT_RESIDENT));
    assert_eq!(weights(&status), [("v1", 50), ("v2", 50)]);
}

#[test]
fn a_failure_before_any_weight_needs_nobody() {
    let mut status = start_rollout(&strategy(vec![weight(50)]));
    assert_eq!(TrafficMachine::from_status(&mut status).fail("it broke", reason::ADAPTER_REJECTED, None, at(2)), None);
    assert_eq!(status.rejected[0].reason, "it broke");
}

#[test]
fn superseding_takes_the_weight_back_and_retires_the_old_candidate() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let mut traffic = TrafficMachine::from_status(&mut status);
    traffic.begin_revision(&id("v3"), &strategy, false, at(2));
    assert_eq!(traffic.newly_retired.iter().map(|left| left.id.as_str()).collect::<Vec<_>>(), ["v2"]);
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((status.revision.number, status.step.map(|step| step.index)), (3, Some(0)));
    assert_eq!(status.history[0].outcome, reason::SUPERSEDED);
}

#[test]
fn a_deadline_counts_observed_time_and_no_gaps() {
    let strategy = strategy(vec![weight(50)]);
    let mut status = start_rollout(&strategy);
    let closed = ResidencyGate { ready: 1, missing: vec!["a".to_owned()], ..ResidencyGate::default() };
    let observed = |status: &RolloutStatus| status.step.as_ref().map(|step| step.observed_millis);
    advance(&mut status, &strategy, &closed, true, at(5));
    assert_eq!(observed(&status), Some(5_000));
    advance(&mut status, &strategy, &closed, true, at(3600));
    assert_eq!(observed(&status), Some(5_000), "nobody looked for an hour");
    advance(&mut status, &strategy, &ResidencyGate::default(), true, at(3605));
    assert_eq!(observed(&status), Some(5_000), "the pool had no Ready server");
    advance(&mut status, &strategy, &closed, true, at(3607));
    assert_eq!(observed(&status), Some(7_000));
}

#[test]
fn promotion_ends_only_the_pause_that_was_seen() {
    let strategy = strategy(vec![pause(), pause(), weight(50)]);
    let mut status = start_rollout(&strategy);
    let promote = |status: &mut RolloutStatus, seen| {
        TrafficMachine::from_status(status).promote(Some(seen), false, at(1)).is_ok()
    };
    assert!(!promote(&mut status, 1));
    assert!(promote(&mut status, 0));
    assert!(!promote(&mut status, 0));
    assert!(promote(&mut status, 1));
    assert!(!promote(&mut status, 2), "a step that sets a weight is no pause");
}
