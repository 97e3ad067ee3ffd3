//! The traffic machine alone: each transition, and what must never change.

use super::*;
use crate::wait::Again;
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
    let weights =
        TrafficWeights { desired: vec![TargetWeight { id: id("v1"), weight: SINGLE }], ..TrafficWeights::default() };
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

fn open() -> Gate {
    Gate { resident: 1, ready: 1, missing: Vec::new() }
}

fn proof(complete: bool) -> Proof {
    let wait = (!complete).then(|| Wait::soon(reason::ROUTERS_PENDING, "waits for routers"));
    Proof { proven: 0, total: 1, wait, shadowed_by: None }
}

/// One decision at `now`.
fn advance(status: &mut RolloutStatus, strategy: &Strategy, gate: &Gate, proven: bool, now: Timestamp) -> Vec<Wait> {
    let proof = proof(proven);
    let scene = Scene {
        now,
        paused: false,
        strategy,
        asked: true,
        observed: true,
        servers: Some(&[]),
        gate: Some(gate),
        obstacle: None,
        proof: &proof,
    };
    Traffic::of(status).advance(scene)
}

fn begun(strategy: &Strategy) -> RolloutStatus {
    let mut status = stable();
    Traffic::of(&mut status).begin(&id("v2"), strategy, false, at(0));
    status
}

#[test]
fn weight_is_given_when_the_gate_is_open_and_the_next_step_waits_for_the_proof() {
    let strategy = strategy(vec![weight(10), weight(50)]);
    let mut status = begun(&strategy);
    let closed = Gate { ready: 1, missing: vec!["a: is loading it".to_owned()], ..Gate::default() };
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
    let mut status = begun(&strategy);
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
    let mut status = begun(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v2", 100)]);
    advance(&mut status, &strategy, &open(), false, at(2));
    assert_eq!(status.revision.stable, Some(id("v1")));
}

#[test]
fn a_first_install_skips_the_steps() {
    let strategy = strategy(vec![weight(10), pause()]);
    let mut status = RolloutStatus::default();
    Traffic::of(&mut status).begin(&id("v1"), &strategy, false, at(0));
    advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
}

#[test]
fn a_weight_of_zero_is_left_out() {
    let strategy = strategy(vec![weight(0), pause()]);
    let mut status = begun(&strategy);
    let waits = advance(&mut status, &strategy, &open(), true, at(1));
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((waits[0].reason, waits[0].again), (reason::AWAITING_PROMOTION, Again::OnChange));
}

#[test]
fn an_abort_is_one_change_of_weights_and_refused_once_it_succeeded() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = begun(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let before = status.weights.sequence;
    assert!(Traffic::of(&mut status).abort(at(2)).is_ok());
    assert_eq!((weights(&status), status.weights.sequence), (vec![("v1", 100)], before.next()));
    assert_eq!(status.rejected[0].id, id("v2"));
    assert!(Traffic::of(&mut stable()).abort(at(2)).is_err());
}

#[test]
fn a_failure_without_a_resident_stable_holds_its_weight() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = begun(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let wait = Traffic::of(&mut status).fail("it broke", reason::DEADLINE_EXCEEDED, Some(&[]), at(2));
    assert_eq!(wait.map(|wait| wait.reason), Some(reason::STABLE_NOT_RESIDENT));
    assert_eq!(weights(&status), [("v1", 50), ("v2", 50)]);
}

#[test]
fn a_failure_before_any_weight_needs_nobody() {
    let mut status = begun(&strategy(vec![weight(50)]));
    assert_eq!(Traffic::of(&mut status).fail("it broke", reason::ADAPTER_REJECTED, None, at(2)), None);
    assert_eq!(status.rejected[0].reason, "it broke");
}

#[test]
fn superseding_takes_the_weight_back_and_retires_the_old_candidate() {
    let strategy = strategy(vec![weight(50), pause()]);
    let mut status = begun(&strategy);
    advance(&mut status, &strategy, &open(), true, at(1));
    let mut traffic = Traffic::of(&mut status);
    traffic.begin(&id("v3"), &strategy, false, at(2));
    assert_eq!(traffic.left.iter().map(|left| left.id.as_str()).collect::<Vec<_>>(), ["v2"]);
    assert_eq!(weights(&status), [("v1", 100)]);
    assert_eq!((status.revision.number, status.step.map(|step| step.index)), (3, Some(0)));
    assert_eq!(status.history[0].outcome, reason::SUPERSEDED);
}

#[test]
fn a_deadline_counts_observed_time_and_no_gaps() {
    let strategy = strategy(vec![weight(50)]);
    let mut status = begun(&strategy);
    let closed = Gate { ready: 1, missing: vec!["a".to_owned()], ..Gate::default() };
    let observed = |status: &RolloutStatus| status.step.as_ref().map(|step| step.observed_millis);
    advance(&mut status, &strategy, &closed, true, at(5));
    assert_eq!(observed(&status), Some(5_000));
    advance(&mut status, &strategy, &closed, true, at(3600));
    assert_eq!(observed(&status), Some(5_000), "nobody looked for an hour");
    advance(&mut status, &strategy, &Gate::default(), true, at(3605));
    assert_eq!(observed(&status), Some(5_000), "the pool had no Ready server");
    advance(&mut status, &strategy, &closed, true, at(3607));
    assert_eq!(observed(&status), Some(7_000));
}

#[test]
fn promotion_ends_only_the_pause_that_was_seen() {
    let strategy = strategy(vec![pause(), pause(), weight(50)]);
    let mut status = begun(&strategy);
    let promote = |status: &mut RolloutStatus, seen| Traffic::of(status).promote(Some(seen), false, at(1)).is_ok();
    assert!(!promote(&mut status, 1));
    assert!(promote(&mut status, 0));
    assert!(!promote(&mut status, 0));
    assert!(promote(&mut status, 1));
    assert!(!promote(&mut status, 2), "a step that sets a weight is no pause");
}
