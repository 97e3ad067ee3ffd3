//! What people and tools read: conditions, phase, message and counts, derived from what was decided.
//!
//! Invariant: mere counts, and which version of the adapters file was read, are written at most every five seconds, and
//! later where nothing is under way; a change of anything else is written at once.

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

/// How often mere counts are decided to be written: at most every five seconds, and half a second more, because a write may
/// have to wait for its turn and the next one not.
const STATUS_WRITE_INTERVAL: Duration = Duration::from_millis(5500);
/// A Rollout at rest says after this time, and at most twice this time, that the adapters file has another version: all
/// that share a file would write at once whenever one of them does.
const IDLE_WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// Missing servers that are named.
const MAX_MISSING: usize = 10;

/// What was decided, for those who read the status.
pub(crate) struct StatusWriter<'a> {
    pub(crate) context: &'a DecisionContext<'a>,
    pub(crate) desired: &'a DesiredAdapter,
    /// What traffic waits for, the main thing first.
    pub(crate) waits: &'a [Wait],
    pub(crate) gate: Option<&'a ResidencyGate>,
    pub(crate) proof: &'a RouterProof,
    /// What retirements wait for.
    pub(crate) retirement_waits: &'a [Wait],
}

impl StatusWriter<'_> {
    /// Writes everything that is derived. Where nobody was asked and nothing was aborted, there is nothing to say.
    pub(crate) fn write(&self, draft: &mut DecisionBuilder) {
        let status = &mut draft.status;
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
        condition_events::record(self.context.rollout, draft);
        self.record_pinned_steps(draft);
        self.record_spec_warning(draft);
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
            parts.push(format!("somebody else keeps editing the rewrite: it is put back at {}", text::time(end)));
        }
        parts.extend(self.context.observed.write_refusal.clone());
        parts.extend(self.unlisted_message(status));
        parts.extend(self.spec_warning().map(|(_, words)| words));
        parts.extend(self.retirement_waits.iter().map(|wait| wait.message.clone()));
        // One cause can hinder more than one thing.
        let mut said = BTreeSet::new();
        parts.retain(|part| !part.is_empty() && said.insert(part.clone()));
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

    /// Steps are pinned: an edit in the middle takes effect next time.
    fn record_pinned_steps(&self, draft: &mut DecisionBuilder) {
        let (rollout, strategy, status) = (self.context.rollout, &self.context.spec.strategy, &draft.status);
        let edited = status.steps != strategy.steps || status.total_weight != strategy.total_weight;
        let under_way = status.step.as_ref().is_some_and(|step| step.state != StepState::Done);
        let previous = rollout.status.as_ref().and_then(|status| status.observed_generation);
        let news = previous.is_some() && previous != rollout.metadata.generation;
        if edited && under_way && news {
            let message = "the steps were edited: this rollout goes on as it began, the next one takes them";
            draft.record_event(false, reason::PROGRESSING, message);
        }
    }

    fn spec_warning(&self) -> Option<(&'static str, String)> {
        desired::spec_warning(&self.context.spec.adapter, self.context.adapters_file().ok()?)
    }

    /// Once: from then on the message says it.
    fn record_spec_warning(&self, draft: &mut DecisionBuilder) {
        let before = self.context.rollout.status.as_ref().map(|status| status.message.as_str()).unwrap_or_default();
        if let Some((reason, words)) = self.spec_warning().filter(|(_, words)| !before.contains(words.as_str())) {
            draft.record_event(true, reason, words);
        }
    }

    /// Adapters that get requests although the file does not list them.
    fn unlisted_message(&self, status: &RolloutStatus) -> Option<String> {
        let file = self.context.adapters_file().ok()?;
        let absent = |id: &&AdapterId| {
            AdapterListing::of(id, file) == AdapterListing::Absent && id.as_str() != self.context.spec.model.as_str()
        };
        let id = status.weights.desired.iter().map(|target| &target.id).find(absent)?;
        Some(format!("{id} gets requests, but a server that restarts cannot load what is not listed: list it again"))
    }
}

/// Why the desired adapter was rejected.
pub(crate) fn rejection(status: &RolloutStatus) -> Option<&str> {
    let desired = status.revision.desired.as_ref()?;
    status.rejected.iter().find(|rejected| rejected.id == *desired).map(|rejected| rejected.reason.as_str())
}

/// Whether everything that had to go is gone, or stays on purpose.
pub(crate) fn is_clean(status: &RolloutStatus) -> bool {
    let undrained = status.rejected.iter().any(|rejected| status.admission.permits(&rejected.id));
    !undrained && status.retired.iter().all(|entry| is_settled(entry.state))
}

/// A Rollout on which nothing is done. Returns whether that is news.
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
    let condition = |kind: &str, holds| Condition {
        type_: kind.to_owned(),
        status: holds,
        reason: why.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: rollout.metadata.generation,
    };
    let news = set_condition(&mut status.conditions, condition(condition_type::STALLED, ConditionStatus::True));
    set_condition(&mut status.conditions, condition(condition_type::PROGRESSING, ConditionStatus::False));
    news
}

/// A Rollout of which it is not known yet what serves its name.
pub(crate) fn set_pending(draft: &mut DecisionBuilder, rollout: &Rollout, wait: &Wait, now: Timestamp) {
    let person =
        matches!(wait.reason, reason::STABLE_UNKNOWN | reason::SHADOWED_BY | reason::DOUBLE_REWRITE | reason::INVALID);
    set_stalled(&mut draft.status, rollout, wait.reason, &wait.message, now);
    if !person {
        draft.status.phase = Phase::Pending;
        draft.status.conditions.retain(|condition| condition.type_ != condition_type::STALLED);
    }
    condition_events::record(rollout, draft);
}

/// When a Rollout at rest says that the adapters file has another version. Spread, so that not all say it at once.
pub(crate) fn file_change_due(case: &DecisionContext<'_>) -> Timestamp {
    case.adapters().map_or(case.now, |adapters| {
        text::after(adapters.first_read_at, IDLE_WRITE_INTERVAL + case.jitter(IDLE_WRITE_INTERVAL))
    })
}

/// Keeps the previous status where nothing but counts changed a moment ago.
pub(crate) fn throttle(
    previous: &RolloutStatus,
    mut decision: Decision,
    file_due: Timestamp,
    now: Timestamp,
) -> Decision {
    let written = previous.step.as_ref().and_then(|step| step.observed_at);
    // What people are told is what the status says.
    let quiet = decision.events.is_empty() && without_counts(previous) == without_counts(&decision.status);
    if !quiet {
        if previous.phase_since.is_none() || previous.phase != decision.status.phase {
            decision.status.phase_since = Some(now);
        }
        return decision;
    }
    let counted = without_clock(previous) == without_clock(&decision.status);
    let due = if is_idle(previous) && without_file_version(previous) == without_file_version(&decision.status) {
        file_due
    } else {
        written.map_or(now, |written| text::after(written, STATUS_WRITE_INTERVAL))
    };
    if counted || now < due {
        if !counted {
            let delay = text::since(now, due).max(Duration::from_millis(1));
            decision.requeue_after = Some(decision.requeue_after.map_or(delay, |requeue| requeue.min(delay)));
        }
        decision.status = previous.clone();
    }
    decision
}

/// Whether nothing is under way: another version of the adapters file is no reason to do anything then.
fn is_idle(status: &RolloutStatus) -> bool {
    status.step.as_ref().is_some_and(|step| step.state == StepState::Done) && is_clean(status)
}

/// A status without counts, the words about them, and the version of the adapters file.
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

/// A status without the time of the last look, and without the version of the adapters file.
fn without_file_version(status: &RolloutStatus) -> RolloutStatus {
    RolloutStatus { observed_adapters: None, ..without_clock(status) }
}

/// A status without the time of the last look.
fn without_clock(status: &RolloutStatus) -> RolloutStatus {
    let mut status = status.clone();
    if let Some(step) = &mut status.step {
        step.observed_at = None;
    }
    status
}
