//! A deadline counts only time in which this operator could observe, and in which a step could have moved: not while
//! paused, not while the pool has no Ready server, not while a person has to list the adapter, not while one that was
//! unlisted has been listed again for too short a while.

use super::{TrafficInputs, TrafficMachine};
use crate::{text::since, wait::RequeueWhen};
use rollora_api::{
    condition::reason,
    rollout::{spec::Strategy, status::StepState},
};
use std::time::Duration;

/// The most that one look adds: longer gaps were not observed.
const MAX_GAP: Duration = Duration::from_secs(15);

/// Adds the time since the last look, where it counts.
pub(super) fn add_observed_time(traffic: &mut TrafficMachine<'_>, scene: TrafficInputs<'_>) {
    let counts = is_counting(traffic, scene);
    let Some(step) = traffic.step.as_mut() else { return };
    let elapsed = step.observed_at.map(|last| since(last, scene.now)).unwrap_or_default();
    if counts && elapsed <= MAX_GAP {
        step.observed_millis += i64::try_from(elapsed.as_millis()).unwrap_or_default();
    }
    // A decision that could not wait for an observation is not the last word: the next look may say its own at once.
    step.observed_at = scene.observation_attempted.then_some(scene.now);
}

fn is_counting(traffic: &TrafficMachine<'_>, scene: TrafficInputs<'_>) -> bool {
    let moving = matches!(
        traffic.step_state(),
        Some(StepState::AwaitingResidency | StepState::AwaitingRouters | StepState::Held)
    );
    let unlisted = scene.residency_wait.is_some_and(|obstacle| obstacle.reason == reason::NOT_LISTED);
    // What nobody can hasten is not late: an id that was unlisted has to be listed again for a while.
    let settling = scene.residency_wait.is_some_and(|obstacle| {
        obstacle.reason == reason::NOT_RESIDENT && matches!(obstacle.requeue, RequeueWhen::At(_))
    });
    let ready = scene.gate.is_some_and(|gate| gate.ready > 0);
    moving && scene.fully_observed && !scene.paused && ready && !unlisted && !settling
}

/// Whether the step has taken longer than it may.
pub(super) fn is_exceeded(traffic: &TrafficMachine<'_>, strategy: &Strategy) -> bool {
    let limit = i64::try_from(strategy.progress_deadline.get().as_millis()).unwrap_or(i64::MAX);
    let moving = !matches!(traffic.step_state(), None | Some(StepState::Pausing | StepState::Done));
    moving && traffic.step.as_ref().is_some_and(|step| step.observed_millis > limit)
}
