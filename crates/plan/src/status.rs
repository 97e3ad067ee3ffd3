//! The derived part of the status: conditions, phase, message and counts, computed from the decision.
//!
//! Invariant: counts alone, and the version of the adapters file, are written at most every five seconds, and later if
//! nothing is in progress. A change of anything else is written immediately.

mod condition_events;
mod conditions;
#[cfg(test)]
mod tests;

use crate::{
    decide::{Decision, DecisionBuilder, DecisionContext},
    desired::{self, DesiredAdapter},
    observed::AdapterListing,
    residency::ResidencyGate,
    retire::is_settled,
    routers::RouterProof,
    text,
    wait::Wait,
};
use jiff::Timestamp;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason, set_condition},
    names::AdapterId,
    rollout::{
        Rollout, RolloutStatus,
        status::{Phase, StepState},
    },
};
use std::{collections::BTreeSet, time::Duration};

/// The shortest interval between two decisions to write only counts. It is half a second longer than the five seconds
/// that are promised, because the rate limiter may delay one write and not the next.
const STATUS_WRITE_INTERVAL: Duration = Duration::from_millis(5500);
/// The delay after which an idle Rollout records a new version of the adapters file, at most twice this time with
/// jitter. Without it, all Rollouts that share a file would write whenever one of them changes it.
const IDLE_WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// Missing servers that the status names.
const MAX_MISSING: usize = 10;

/// Derives the status from the results of one decision.
pub(crate) struct StatusWriter<'a> {
    pub(crate) context: &'a DecisionContext<'a>,
    pub(crate) desired: &'a DesiredAdapter,
    /// What traffic waits for, the main wait first.
    pub(crate) waits: &'a [Wait],
    pub(crate) gate: Option<&'a ResidencyGate>,
    pub(crate) proof: &'a RouterProof,
    /// What the retirements wait for.
    pub(crate) retirement_waits: &'a [Wait],
}

impl StatusWriter<'_> {
    /// Writes all derived fields. If servers and routers were not queried and nothing was aborted, the old values stay.
    pub(crate) fn write(&self, builder: &mut DecisionBuilder) {
        let status = &mut builder.status;
        if !self.context.is_observation_attempted() && rejection(status).is_none() {
            return;
        }
        status.observed_generation = self.context.rollout.metadata.generation;
        status.observed_adapters = self.context.observed_adapters().or(status.observed_adapters.take());
        self.set_counts(status);
        let phase = self.phase(status);
        status.phase = phase;
        status.message = self.message(status);
        status.summary = status.summarize();
        conditions::set_all(self, status);
        condition_events::record(self.context.rollout, builder);
        self.record_pinned_steps(builder);
        self.record_spec_warning(builder);
    }

    fn set_counts(&self, status: &mut RolloutStatus) {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        if let Some(gate) = self.gate {
            status.residency.resident = number(gate.resident);
            status.residency.ready = number(gate.ready);
            status.residency.missing = gate.missing.iter().take(MAX_MISSING).cloned().collect();
        }
        status.routers.kind = self.context.spec.router;
        if self.context.observed.routers.is_ok() {
            status.routers.proven = number(self.proof.proven);
            status.routers.total = number(self.proof.total);
        }
    }

    fn phase(&self, status: &RolloutStatus) -> Phase {
        let Some(step) = &status.step else { return Phase::Pending };
        if rejection(status).is_some() {
            return match (&status.revision.stable, step.state) {
                (None, _) => Phase::Held,
                (Some(_), StepState::Done) => Phase::RolledBack,
                (Some(_), _) => Phase::RollingBack,
            };
        }
        let stopped = self.waits.first().is_some_and(|wait| {
            matches!(wait.reason, reason::DEADLINE_EXCEEDED | reason::STABLE_NOT_RESIDENT | reason::SHADOWED_BY)
        });
        let has_weight =
            status.weights.desired.iter().any(|target| Some(&target.id) == status.revision.desired.as_ref());
        match step.state {
            StepState::Done => Phase::Succeeded,
            StepState::Held => Phase::Held,
            _ if stopped => Phase::Held,
            _ if self.context.spec.paused => Phase::Paused,
            StepState::Pausing => Phase::Paused,
            StepState::AwaitingRouters => Phase::Progressing,
            StepState::AwaitingResidency if has_weight => Phase::Progressing,
            StepState::AwaitingResidency => Phase::Pending,
        }
    }

    fn message(&self, status: &RolloutStatus) -> String {
        let mut parts = vec![self.headline(status)];
        parts.extend(self.waits.iter().map(|wait| wait.message.clone()));
        if let (DesiredAdapter::Unchanged(why), true) = (self.desired, self.context.is_observation_attempted()) {
            parts.push(why.clone());
        }
        if let crate::intent::PendingIntent::Unreadable(why) = crate::intent::pending_intent(self.context.rollout) {
            parts.push(why);
        }
        if let Some(end) = self.context.contested_until(status) {
            parts.push(format!(
                "another writer keeps editing the rewrite: the weights are written again at {}",
                text::time(end)
            ));
        }
        parts.extend(self.context.observed.write_refusal.clone());
        parts.extend(self.unlisted_message(status));
        parts.extend(self.spec_warning().map(|(_, message)| message));
        parts.extend(self.retirement_waits.iter().map(|wait| wait.message.clone()));
        // One cause can block more than one thing.
        let mut unique = BTreeSet::new();
        parts.retain(|part| !part.is_empty() && unique.insert(part.clone()));
        parts.join("; ")
    }

    fn headline(&self, status: &RolloutStatus) -> String {
        let name = &self.context.rollout.metadata.name;
        let Some(desired) = &status.revision.desired else { return String::new() };
        if let Some(why) = rejection(status) {
            let next = format!("list another id, or run: rollora retry {name}");
            return format!("{desired} was rejected: {why}; {next}");
        }
        match status.step.as_ref().map(|step| step.state) {
            Some(StepState::Done) if self.proof.shadowed_by.is_none() => {
                let servers = self.context.servers();
                let unserved =
                    servers.and_then(|servers| conditions::unserved(&self.context.spec.pool_ref, servers, [desired]));
                match unserved {
                    None => format!("{desired} serves all requests"),
                    Some((_, _, why)) => format!("{desired} has all traffic, and {why}"),
                }
            }
            _ => String::new(),
        }
    }

    /// Records an event if the steps were edited during a rollout. They are pinned, so the edit applies to the next
    /// one.
    fn record_pinned_steps(&self, builder: &mut DecisionBuilder) {
        let (rollout, strategy, status) = (self.context.rollout, &self.context.spec.strategy, &builder.status);
        let edited = status.steps != strategy.steps || status.total_weight != strategy.total_weight;
        let in_progress = status.step.as_ref().is_some_and(|step| step.state != StepState::Done);
        let previous = rollout.status.as_ref().and_then(|status| status.observed_generation);
        let is_new = previous.is_some() && previous != rollout.metadata.generation;
        if edited && in_progress && is_new {
            let message =
                "the steps were edited: this rollout keeps its earlier steps, the next one uses the edited steps";
            builder.record_event(false, reason::PROGRESSING, message);
        }
    }

    fn spec_warning(&self) -> Option<(&'static str, String)> {
        desired::spec_warning(&self.context.spec.adapter, self.context.adapters_file().ok()?)
    }

    /// Records a warning event once: afterwards the status message contains it.
    fn record_spec_warning(&self, builder: &mut DecisionBuilder) {
        let before = self.context.rollout.status.as_ref().map(|status| status.message.as_str()).unwrap_or_default();
        if let Some((reason, message)) = self.spec_warning().filter(|(_, message)| !before.contains(message.as_str())) {
            builder.record_event(true, reason, message);
        }
    }

    /// Warns of an adapter that gets requests although neither list of the file contains it.
    fn unlisted_message(&self, status: &RolloutStatus) -> Option<String> {
        let file = self.context.adapters_file().ok()?;
        let absent = |id: &&AdapterId| {
            AdapterListing::of(id, file) == AdapterListing::Absent && id.as_str() != self.context.spec.model.as_str()
        };
        let id = status.weights.desired.iter().map(|target| &target.id).find(absent)?;
        Some(format!("{id} gets requests but is not listed, so a restarted server cannot load it: list it again"))
    }
}

/// Returns why the desired adapter was rejected; `None` if it was not.
pub(crate) fn rejection(status: &RolloutStatus) -> Option<&str> {
    let desired = status.revision.desired.as_ref()?;
    status.rejected.iter().find(|rejected| rejected.id == *desired).map(|rejected| rejected.reason.as_str())
}

/// Returns whether every retired or rejected id is unloaded, or stays on purpose.
pub(crate) fn is_clean(status: &RolloutStatus) -> bool {
    let undrained = status.rejected.iter().any(|rejected| status.admission.permits(&rejected.id));
    !undrained && status.retired.iter().all(|entry| is_settled(entry.state))
}

/// Writes the status of a Rollout that cannot proceed. Returns whether the condition `Stalled` changed.
pub(crate) fn set_stalled(
    status: &mut RolloutStatus,
    rollout: &Rollout,
    why: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    status.observed_generation = rollout.metadata.generation;
    status.phase = Phase::Invalid;
    message.clone_into(&mut status.message);
    let condition = |kind: &str, condition_status| Condition {
        type_: kind.to_owned(),
        status: condition_status,
        reason: why.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: rollout.metadata.generation,
    };
    let changed = set_condition(&mut status.conditions, condition(condition_type::STALLED, ConditionStatus::True));
    set_condition(&mut status.conditions, condition(condition_type::PROGRESSING, ConditionStatus::False));
    changed
}

/// Writes the status of a Rollout for which it is not known yet what serves its model name.
pub(crate) fn set_pending(builder: &mut DecisionBuilder, rollout: &Rollout, wait: &Wait, now: Timestamp) {
    let needs_person =
        matches!(wait.reason, reason::STABLE_UNKNOWN | reason::SHADOWED_BY | reason::DOUBLE_REWRITE | reason::INVALID);
    set_stalled(&mut builder.status, rollout, wait.reason, &wait.message, now);
    if !needs_person {
        builder.status.phase = Phase::Pending;
        builder.status.conditions.retain(|condition| condition.type_ != condition_type::STALLED);
    }
    condition_events::record(rollout, builder);
}

/// Returns when an idle Rollout records a new version of the adapters file, spread by jitter over the Rollouts.
pub(crate) fn file_change_due(context: &DecisionContext<'_>) -> Timestamp {
    context.adapters().map_or(context.now, |adapters| {
        text::after(adapters.first_read_at, IDLE_WRITE_INTERVAL + context.jitter(IDLE_WRITE_INTERVAL))
    })
}

/// Keeps the previous status if only counts changed and the last write was recent.
pub(crate) fn throttle(
    previous: &RolloutStatus,
    mut decision: Decision,
    file_due: Timestamp,
    now: Timestamp,
) -> Decision {
    let written = previous.step.as_ref().and_then(|step| step.observed_at);
    // An event is published together with the status that explains it, so it always causes a write.
    let only_counts = decision.events.is_empty() && without_counts(previous) == without_counts(&decision.status);
    if !only_counts {
        if previous.phase_since.is_none() || previous.phase != decision.status.phase {
            decision.status.phase_since = Some(now);
        }
        return decision;
    }
    let unchanged = without_clock(previous) == without_clock(&decision.status);
    let due = if is_idle(previous) && without_file_version(previous) == without_file_version(&decision.status) {
        file_due
    } else {
        written.map_or(now, |written| text::after(written, STATUS_WRITE_INTERVAL))
    };
    if unchanged || now < due {
        if !unchanged {
            let delay = text::since(now, due).max(Duration::from_millis(1));
            decision.requeue_after = Some(decision.requeue_after.map_or(delay, |requeue| requeue.min(delay)));
        }
        decision.status = previous.clone();
    }
    decision
}

/// Returns whether nothing is in progress; a new version of the adapters file then needs no immediate write.
fn is_idle(status: &RolloutStatus) -> bool {
    status.step.as_ref().is_some_and(|step| step.state == StepState::Done) && is_clean(status)
}

/// Returns the status without counts, the messages that contain them, and the version of the adapters file.
fn without_counts(status: &RolloutStatus) -> RolloutStatus {
    let mut status = without_file_version(status);
    if let Some(step) = &mut status.step {
        step.observed_millis = 0;
    }
    status.message.clear();
    status.residency.resident = 0;
    status.residency.ready = 0;
    status.residency.missing.clear();
    status.routers.proven = 0;
    status.routers.total = 0;
    status.retired.iter_mut().for_each(|entry| entry.reason.clear());
    status.conditions.iter_mut().for_each(|condition| condition.message.clear());
    status
}

/// Returns the status without the time of the last observation and the version of the adapters file.
fn without_file_version(status: &RolloutStatus) -> RolloutStatus {
    RolloutStatus { observed_adapters: None, ..without_clock(status) }
}

/// Returns the status without the time of the last observation.
fn without_clock(status: &RolloutStatus) -> RolloutStatus {
    let mut status = status.clone();
    if let Some(step) = &mut status.step {
        step.observed_at = None;
    }
    status
}
