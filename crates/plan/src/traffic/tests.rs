//! Tests of the traffic machine alone: its transitions, and what they must not change.

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

/// Returns a status in which v1 serves all requests.
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

/// Runs the machine once at `now` and returns its waits.
fn advance(
    status: &mut RolloutStatus,
    strategy: &Strategy,
    gate: &ResidencyGate,
    proven: bool,
    now: Timestamp,
) -> Vec<Wait> {
    let proof = proof(proven);
    let inputs = TrafficInputs {
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
    TrafficMachine::from_status(status).advance(inputs)
}

fn start_rollout(strategy: &Strategy) -> RolloutStatus {
    let mut status = stable();
    TrafficMachine::from_status(&mut status).begin_revision(&id("v2"), strategy, false, at(0));
    status
}

#[test]
fn weight_needs_open_gate_and_next_step_needs_proof() {
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
fn final_step_sends_all_traffic_to_desired() {
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
fn stable_changes_only_after_router_proof() {
    let strategy = strategy(Vec::new());
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v2", 100)]);
    advance(&mut status, &strategy, &open(), false, at(2));
    assert_eq!(status.revision.stable, Some(id("v1")));
}

#[test]
fn first_install_skips_the_steps() {
    let strategy = strategy(vec![weight(10), pause()]);
    let mut status = RolloutStatus::default();
    TrafficMachine::from_status(&mut status).begin_revision(&id("v1"), &strategy, false, at(0));
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
}

#[test]
fn zero_weight_target_is_omitted() {
    let strategy = strategy(vec![weight(0), pause()]);
    let mut status = start_rollout(&strategy);
    let waits = advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((waits[0].reason, waits[0].requeue), (reason::AWAITING_PROMOTION, RequeueWhen::OnChange));
}

#[test]
fn abort_is_one_weight_change_and_refused_after_success() {
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
fn failure_holds_weight_if_stable_is_not_resident() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let wait = TrafficMachine::from_status(&mut status).fail("it broke", reason::DEADLINE_EXCEEDED, Some(&[]), at(2));
    assert_eq!(wait.map(|wait| wait.reason), Some(reason::STABLE_NOT_RESIDENT));
    assert_eq!(weights(&status), [("v1", 50), ("v2", 50)]);
}

#[test]
fn failure_before_any_weight_needs_no_stable() {
    let mut status = start_rollout(&strategy(vec![weight(50)]));
    assert_eq!(TrafficMachine::from_status(&mut status).fail("it broke", reason::ADAPTER_REJECTED, None, at(2)), None);
    assert_eq!(status.rejected[0].reason, "it broke");
}

#[test]
fn superseding_resets_weight_and_retires_old_candidate() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = start_rollout(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let mut traffic = TrafficMachine::from_status(&mut status);
    traffic.begin_revision(&id("v3"), &strategy, false, at(2));
    assert_eq!(traffic.newly_retired.iter().map(|retired| retired.id.as_str()).collect::<Vec<_>>(), ["v2"]);
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((status.revision.number, status.step.map(|step| step.index)), (3, Some(0)));
    assert_eq!(status.history[0].outcome, reason::SUPERSEDED);
}

#[test]
fn deadline_counts_only_observed_time() {
    let strategy = strategy(vec![weight(50)]);
    let mut status = start_rollout(&strategy);
    let closed = ResidencyGate { ready: 1, missing: vec!["a".to_owned()], ..ResidencyGate::default() };
    let observed = |status: &RolloutStatus| status.step.as_ref().map(|step| step.observed_millis);
    advance(&mut status, &strategy, &closed, true, at(5));
    assert_eq!(observed(&status), Some(5_000));
    advance(&mut status, &strategy, &closed, true, at(3600));
    assert_eq!(observed(&status), Some(5_000), "an hour without observations does not count");
    advance(&mut status, &strategy, &ResidencyGate::default(), true, at(3605));
    assert_eq!(observed(&status), Some(5_000), "time without a Ready server does not count");
    advance(&mut status, &strategy, &closed, true, at(3607));
    assert_eq!(observed(&status), Some(7_000));
}

#[test]
fn promotion_ends_only_the_expected_pause() {
    let strategy = strategy(vec![pause(), pause(), weight(50)]);
    let mut status = start_rollout(&strategy);
    let promote = |status: &mut RolloutStatus, step| {
        TrafficMachine::from_status(status).promote(Some(step), false, at(1)).is_ok()
    };
    assert!(!promote(&mut status, 1));
    assert!(promote(&mut status, 0));
    assert!(!promote(&mut status, 0));
    assert!(promote(&mut status, 1));
    assert!(!promote(&mut status, 2), "a step that sets a weight is not a pause");
}
