//! The deadline of a step.
//!
//! It counts only time in which this operator could observe everything and the step could have advanced. It does not
//! count while the Rollout is paused, while the pool has no Ready server, while a person must list the adapter, or
//! during the delay after an unlisted adapter was listed again.

use super::{TrafficInputs, TrafficMachine};
use crate::{text::since, wait::RequeueWhen};
use rollora_api::{
    condition::reason,
    rollout::{spec::Strategy, status::StepState},
};
use std::time::Duration;

/// The longest interval between two decisions that counts; longer gaps were not observed.
const MAX_GAP: Duration = Duration::from_secs(15);

/// Adds the time since the last observation, if it counts.
pub(super) fn add_observed_time(traffic: &mut TrafficMachine<'_>, inputs: TrafficInputs<'_>) {
    let counts = is_counting(traffic, inputs);
    let Some(step) = traffic.step.as_mut() else { return };
    let elapsed = step.observed_at.map(|last| since(last, inputs.now)).unwrap_or_default();
    if counts && elapsed <= MAX_GAP {
        step.observed_millis += i64::try_from(elapsed.as_millis()).unwrap_or_default();
    }
    // A decision without an observation must not delay the next status write, which is throttled by this time.
    step.observed_at = inputs.observation_attempted.then_some(inputs.now);
}

fn is_counting(traffic: &TrafficMachine<'_>, inputs: TrafficInputs<'_>) -> bool {
    let moving = matches!(
        traffic.step_state(),
        Some(StepState::AwaitingResidency | StepState::AwaitingRouters | StepState::Held)
    );
    let unlisted = inputs.residency_wait.is_some_and(|wait| wait.reason == reason::NOT_LISTED);
    // The delay after listing an id again cannot be shortened, so it does not count.
    let settling = inputs
        .residency_wait
        .is_some_and(|wait| wait.reason == reason::NOT_RESIDENT && matches!(wait.requeue, RequeueWhen::At(_)));
    let ready = inputs.gate.is_some_and(|gate| gate.ready > 0);
    moving && inputs.fully_observed && !inputs.paused && ready && !unlisted && !settling
}

/// Returns whether the step has exceeded `progressDeadline`.
pub(super) fn is_exceeded(traffic: &TrafficMachine<'_>, strategy: &Strategy) -> bool {
    let limit = i64::try_from(strategy.progress_deadline.get().as_millis()).unwrap_or(i64::MAX);
    let moving = !matches!(traffic.step_state(), None | Some(StepState::Pausing | StepState::Done));
    moving && traffic.step.as_ref().is_some_and(|step| step.observed_millis > limit)
}
