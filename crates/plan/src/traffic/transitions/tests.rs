//! Explores all inputs of the machine in every state that it can reach: each transition that it makes is in the table,
//! and each transition of the table is made.

use super::*;
use crate::{
    observed::ObservedServer,
    residency::ResidencyGate,
    routers::RouterProof,
    traffic::{TrafficInputs, TrafficMachine},
    wait::Wait,
};
use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    rollout::{
        RolloutStatus,
        spec::{OnFailure, Pause, Step, Strategy},
        status::{RejectedAdapter, Revision, StepStatus, TargetWeight, TrafficWeights},
    },
    sidecar_status::{AdapterState, AdapterStatus, ServerIdentity, SidecarStatus},
};
use std::collections::BTreeSet;

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

/// Longer than a pause, a deadline, or a tolerated loss; shorter than a gap that does not count.
const LONG: SignedDuration = SignedDuration::from_secs(14);
const SHORT: SignedDuration = SignedDuration::from_millis(100);

/// Returns strategies with each kind of step, with two pauses in a row, and with a pause first and last.
fn strategies() -> Vec<Strategy> {
    let weight = |weight| Step { set_weight: Some(weight), pause: None };
    let open = || Step { set_weight: None, pause: Some(Pause::default()) };
    let timed = || Step { set_weight: None, pause: Some(serde_json::from_str(r#"{"duration":"10s"}"#).unwrap()) };
    let plans = [vec![], vec![weight(0), timed(), open(), weight(50)], vec![open(), weight(30), timed()]];
    let deadline: Strategy = serde_json::from_str(r#"{"steps":[],"progressDeadline":"13s"}"#).unwrap();
    let on = |steps: &Vec<Step>, on_failure| Strategy { steps: steps.clone(), on_failure, ..deadline.clone() };
    plans.iter().flat_map(|steps| [OnFailure::Rollback, OnFailure::Hold].map(|failure| on(steps, failure))).collect()
}

/// Which adapters the servers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServersFixture {
    Unobserved,
    NoneReady,
    HaveAll,
    LackDesired,
    LackAll,
}

impl ServersFixture {
    fn observed(self, desired: Option<&AdapterId>) -> Option<Vec<ObservedServer>> {
        let has = |id: &AdapterId| match self {
            Self::HaveAll => true,
            Self::LackDesired => Some(id) != desired,
            _ => false,
        };
        let adapters = ["v1", "v2", "v3"].map(id).into_iter().filter(has);
        let status = SidecarStatus {
            server: Some(ServerIdentity { endpoint: "a".to_owned(), start: "1".to_owned() }),
            adapters: adapters.map(|id| AdapterStatus::new(id, AdapterState::Verified)).collect(),
            ..SidecarStatus::default()
        };
        let ready = self != Self::NoneReady;
        let server = ObservedServer { ready, ..ObservedServer::ready("a", status) };
        (self != Self::Unobserved).then(|| vec![server])
    }

    fn gate(self) -> Option<ResidencyGate> {
        let lacks = || vec!["a: does not have it".to_owned()];
        match self {
            Self::Unobserved => None,
            Self::NoneReady => Some(ResidencyGate::default()),
            Self::HaveAll => Some(ResidencyGate { resident: 1, ready: 1, missing: Vec::new() }),
            Self::LackDesired | Self::LackAll => Some(ResidencyGate { resident: 0, ready: 1, missing: lacks() }),
        }
    }
}

/// One input of the machine.
#[derive(Debug, Clone, Copy)]
enum MachineInput {
    Advance { servers: ServersFixture, paused: bool, listed: bool, routers: RoutersFixture },
    SetDesired { id: &'static str, skip_steps: bool },
    Fail(ServersFixture),
    Abort,
    Promote,
    PromoteFull,
    Retry,
}

#[derive(Debug, Clone, Copy)]
enum RoutersFixture {
    Proven,
    Lag,
    Shadowed,
}

fn machine_inputs() -> Vec<MachineInput> {
    let mut inputs = vec![MachineInput::Abort, MachineInput::Promote, MachineInput::PromoteFull, MachineInput::Retry];
    let all = [
        ServersFixture::Unobserved,
        ServersFixture::NoneReady,
        ServersFixture::HaveAll,
        ServersFixture::LackDesired,
        ServersFixture::LackAll,
    ];
    for servers in all {
        inputs.push(MachineInput::Fail(servers));
        for (paused, listed) in [(false, false), (false, true), (true, false), (true, true)] {
            let reports = [RoutersFixture::Proven, RoutersFixture::Lag, RoutersFixture::Shadowed];
            inputs.extend(reports.map(|routers| MachineInput::Advance { servers, paused, listed, routers }));
        }
    }
    for id in ["v1", "v2", "v3"] {
        inputs.extend([false, true].map(|skip_steps| MachineInput::SetDesired { id, skip_steps }));
    }
    inputs
}

fn apply_input(
    status: &mut RolloutStatus,
    input: MachineInput,
    strategy: &Strategy,
    now: Timestamp,
) -> Vec<Transition> {
    let desired = status.revision.desired.clone();
    let mut traffic = TrafficMachine::from_status(status);
    match input {
        MachineInput::SetDesired { id: name, .. } if desired == Some(id(name)) => {}
        MachineInput::SetDesired { id: name, skip_steps } => {
            traffic.begin_revision(&id(name), strategy, skip_steps, now);
        }
        // Only an unfinished revision can fail, see `reject_if_fatal` and `try_on_pilot`.
        MachineInput::Fail(servers) => {
            if traffic.is_unfinished() {
                let observed = servers.observed(desired.as_ref());
                traffic.fail("it is bad", reason::ADAPTER_REJECTED, observed.as_deref(), now);
            }
        }
        MachineInput::Abort => drop(traffic.abort(now)),
        MachineInput::Promote => drop(traffic.promote(None, false, now)),
        MachineInput::PromoteFull => drop(traffic.promote_full(None, false, now)),
        MachineInput::Retry => drop(traffic.retry(strategy, now)),
        MachineInput::Advance { servers, paused, listed, routers } => {
            let (observed, gate) = (servers.observed(desired.as_ref()), servers.gate());
            let residency_wait = (!listed).then(|| Wait::on_change(reason::NOT_LISTED, "list it"));
            let lag = matches!(routers, RoutersFixture::Lag)
                .then(|| Wait::soon(reason::ROUTERS_PENDING, "waits for routers"));
            let shadowed_by = matches!(routers, RoutersFixture::Shadowed).then(|| "other".to_owned());
            let proof = RouterProof { proven: 0, total: 1, wait: lag, shadowed_by };
            traffic.advance(TrafficInputs {
                now,
                paused,
                strategy,
                observation_attempted: true,
                fully_observed: true,
                servers: observed.as_deref(),
                gate: gate.as_ref(),
                residency_wait: residency_wait.as_ref(),
                proof: &proof,
            });
        }
    }
    traffic.transitions
}

/// Returns the parts of a status on which the next transition depends; the time is part of each input.
fn state_key(status: &RolloutStatus) -> String {
    let revision = (&status.revision.stable, &status.revision.desired);
    let rejected: BTreeSet<_> = status.rejected.iter().map(|rejected| &rejected.id).collect();
    let step = status.step.as_ref().map(|step| (step.index, step.state, step.observed_millis > 13_000));
    let lost = status.residency.lost_since.is_some();
    format!("{revision:?} {rejected:?} {step:?} {lost} {:?}", status.weights.desired)
}

/// Asserts what must hold after every input.
fn assert_invariants(before: &RolloutStatus, after: &RolloutStatus, input: MachineInput, strategy: &Strategy) {
    let context = || format!("{input:?}\nbefore {before:#?}\nafter {after:#?}");
    let weight = |status: &RolloutStatus, id: Option<&AdapterId>| {
        status.weights.desired.iter().find(|target| Some(&target.id) == id).map_or(0, |target| target.weight)
    };
    let (desired, stable) = (after.revision.desired.as_ref(), after.revision.stable.as_ref());
    // Weights are always those of a step.
    let planned = |weight: i32| strategy.steps.iter().any(|step| step.set_weight == Some(weight));
    match after.weights.desired.as_slice() {
        [] => {}
        [only] => assert!(only.weight == 100 && [stable, desired].contains(&Some(&only.id)), "{}", context()),
        [one, other] => {
            assert_eq!(one.weight + other.weight, 100, "{}", context());
            assert!(Some(&one.id) == stable && Some(&other.id) == desired && planned(other.weight), "{}", context());
        }
        _ => panic!("more than two targets: {}", context()),
    }
    // Weight increases only if the gate is open.
    let open = matches!(input, MachineInput::Advance { servers: ServersFixture::HaveAll, listed: true, .. });
    let given = weight(after, desired) > weight(before, desired);
    let is_rollback = stable == desired;
    assert!(!given || open || is_rollback, "weight without a gate: {}", context());
    // Each change of weights gets a new sequence, and nothing else does.
    let changed = before.weights.desired != after.weights.desired;
    assert_eq!(changed, after.weights.sequence > before.weights.sequence, "{}", context());
    // Stable changes only when the desired adapter has all traffic, or when a first install is superseded.
    if before.revision.stable != after.revision.stable {
        let (first, all) = (before.revision.stable.is_none(), weight(before, stable) == 100);
        assert!(all && (first || Some(before.revision.desired.as_ref()) == Some(stable)), "{}", context());
    }
    // An abort returns all traffic to stable, in this one change.
    if matches!(input, MachineInput::Abort)
        && TrafficMachine::from_status(&mut after.clone()).current_state() == TrafficState::RollingBack
        && stable.is_some()
    {
        assert_eq!(weight(after, desired), 0, "{}", context());
    }
}

fn initial_statuses() -> [RolloutStatus; 4] {
    let step = StepStatus {
        index: 0,
        state: StepState::Done,
        entered_at: Timestamp::UNIX_EPOCH,
        observed_millis: 0,
        observed_at: None,
    };
    let target = |name, weight| TargetWeight { id: id(name), weight };
    let serves = |weights, step| RolloutStatus {
        revision: Revision { number: 1, stable: Some(id("v1")), desired: None },
        total_weight: 100,
        step,
        weights: TrafficWeights { desired: weights, ..TrafficWeights::default() },
        ..RolloutStatus::default()
    };
    let mut stable = serves(vec![target("v1", 100)], Some(step));
    stable.revision.desired = Some(id("v1"));
    let mut remembered = serves(vec![target("v1", 100)], None);
    remembered.rejected = vec![RejectedAdapter { id: id("v2"), reason: "it was rejected before".to_owned() }];
    // An empty status; a name that is served without a rule; one that is served by a rule; a lost status for which a
    // rejected id is recorded.
    [RolloutStatus::default(), serves(Vec::new(), None), stable, remembered]
}

/// Returns every transition that the machine makes for all sequences of inputs.
fn explore() -> BTreeSet<Transition> {
    let (mut made, inputs) = (BTreeSet::new(), machine_inputs());
    for strategy in strategies() {
        let mut pending: Vec<(RolloutStatus, Timestamp)> =
            initial_statuses().into_iter().map(|status| (status, Timestamp::UNIX_EPOCH)).collect();
        let mut visited: BTreeSet<String> = pending.iter().map(|(status, _)| state_key(status)).collect();
        while let Some((before, clock)) = pending.pop() {
            for (&input, delay) in inputs.iter().flat_map(|input| [(input, SHORT), (input, LONG)]) {
                let (mut after, now) = (before.clone(), clock + delay);
                made.extend(apply_input(&mut after, input, &strategy, now));
                assert_invariants(&before, &after, input, &strategy);
                if visited.insert(state_key(&after)) {
                    pending.push((after, now));
                }
            }
        }
    }
    made
}

#[test]
fn explored_transitions_equal_the_table() {
    let expected: BTreeSet<Transition> = TRANSITIONS
        .iter()
        .flat_map(|(from, by, to)| to.iter().map(|to| Transition { from: *from, trigger: *by, to: *to }))
        .collect();
    let made = explore();
    let unused: Vec<_> = expected.difference(&made).collect();
    assert!(unused.is_empty(), "transitions that are never made: {unused:#?}");
    assert_eq!(made, expected);
}
