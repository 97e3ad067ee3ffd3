//! The traffic machine: how much traffic the desired adapter gets.
//!
//! [`transitions`] lists every transition; `ARCHITECTURE.md` shows them as a diagram.
//!
//! Invariants:
//! - Weights change only here.
//! - Only ids that passed the residency gate get weight.
//! - Stable changes only when a rollout has succeeded.
//! - This machine does not read the state of retirements.

mod actions;
mod deadline;
mod steps;
#[cfg(test)]
mod tests;
pub(crate) mod transitions;

pub(crate) use actions::IntentResult;

use self::transitions::{TrafficState, Transition, Trigger};
use crate::{
    event::RolloutEvent,
    observed::ObservedServer,
    residency::{self, ResidencyGate},
    routers::RouterProof,
    wait::Wait,
};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::AdapterId,
    rollout::{
        spec::{Step, Strategy},
        status::{
            PastRevision, RejectedAdapter, Revision, RolloutStatus, StepState, StepStatus, TargetWeight, TrafficWeights,
        },
    },
};

/// Maximum number of ended revisions, and of rejected ids, that the status keeps.
const MAX_HISTORY: usize = 10;

/// The part of a status that belongs to this machine, and the results of one decision.
#[derive(Debug)]
pub(crate) struct TrafficMachine<'a> {
    pub(crate) revision: &'a mut Revision,
    pub(crate) steps: &'a mut Vec<Step>,
    pub(crate) total_weight: &'a mut i32,
    pub(crate) step: &'a mut Option<StepStatus>,
    pub(crate) weights: &'a mut TrafficWeights,
    pub(crate) lost_since: &'a mut Option<Timestamp>,
    pub(crate) rejected: &'a mut Vec<RejectedAdapter>,
    pub(crate) history: &'a mut Vec<PastRevision>,
    /// Ids that lost their last weight.
    pub(crate) newly_retired: Vec<NewlyRetired>,
    /// The transitions that were made, in order.
    pub(crate) transitions: Vec<Transition>,
    /// Events recorded so far.
    pub(crate) events: Vec<RolloutEvent>,
}

/// An id that lost its last weight; the retirement machine takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewlyRetired {
    pub(crate) id: AdapterId,
    /// Why it lost its weight.
    pub(crate) reason: String,
    /// Whether it was stable, that is, had all requests.
    pub(crate) was_stable: bool,
}

/// The inputs of one evaluation of the traffic machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrafficInputs<'a> {
    /// The time of the decision.
    pub(crate) now: Timestamp,
    /// The field `spec.paused`: no step begins while it is true.
    pub(crate) paused: bool,
    /// The field `spec.strategy`. Deadline and failure policy apply immediately; steps are pinned per revision.
    pub(crate) strategy: &'a Strategy,
    /// Whether servers and routers were queried at all.
    pub(crate) observation_attempted: bool,
    /// Whether everything could be observed: only such time counts toward the deadline.
    pub(crate) fully_observed: bool,
    /// The pool's servers; `None` if they could not be listed.
    pub(crate) servers: Option<&'a [ObservedServer]>,
    /// The residency gate of the desired adapter; `None` if it could not be evaluated.
    pub(crate) gate: Option<&'a ResidencyGate>,
    /// Why the desired adapter cannot become resident everywhere yet; `None` if nothing but time is missing.
    pub(crate) residency_wait: Option<&'a Wait>,
    /// Whether the routers apply the weights.
    pub(crate) proof: &'a RouterProof,
}

/// How the evaluation of a step continues.
enum StepProgress {
    /// The state changed: evaluate the new one.
    Continue,
    /// Nothing more can be done in this decision; contains what the step waits for, if anything.
    Wait(Option<Wait>),
}

impl<'a> TrafficMachine<'a> {
    /// Borrows the machine's part of a status.
    pub(crate) fn from_status(status: &'a mut RolloutStatus) -> Self {
        Self {
            revision: &mut status.revision,
            steps: &mut status.steps,
            total_weight: &mut status.total_weight,
            step: &mut status.step,
            weights: &mut status.weights,
            lost_since: &mut status.residency.lost_since,
            rejected: &mut status.rejected,
            history: &mut status.history,
            newly_retired: Vec::new(),
            transitions: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Advances as far as the inputs allow and returns what it waits for then, the main wait first.
    pub(crate) fn advance(&mut self, inputs: TrafficInputs<'_>) -> Vec<Wait> {
        deadline::add_observed_time(self, inputs);
        let lost = self.check_residency(inputs);
        // Each step is evaluated at most twice: until it gets its weight, and after its proof.
        for _ in 0..=2 * (self.steps.len() + 2) {
            if let StepProgress::Wait(wait) = self.advance_once(inputs) {
                return wait.into_iter().chain(lost).collect();
            }
        }
        lost.into_iter().collect()
    }

    fn advance_once(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        let Some(step) = self.step.as_ref() else { return StepProgress::Wait(None) };
        if self.rejection().is_some() {
            return self.roll_back(inputs);
        }
        let progress = match step.state {
            StepState::Done => StepProgress::Wait(None),
            StepState::Pausing => self.await_pause(inputs),
            StepState::AwaitingResidency => self.await_residency(inputs),
            StepState::AwaitingRouters => self.await_routers(inputs),
            StepState::Held => self.await_recovery(inputs),
        };
        match progress {
            StepProgress::Wait(wait) if deadline::is_exceeded(self, inputs.strategy) => {
                StepProgress::Wait(self.handle_missed_deadline(wait, inputs))
            }
            progress => progress,
        }
    }

    /// Begins a new revision. `skip_steps` is for an adapter that recently had all requests.
    pub(crate) fn begin_revision(&mut self, id: &AdapterId, strategy: &Strategy, skip_steps: bool, now: Timestamp) {
        let from = self.current_state();
        self.begin_revision_from(from, Trigger::DesiredChanged, (id, strategy, skip_steps), now);
    }

    fn begin_revision_from(
        &mut self,
        from: TrafficState,
        trigger: Trigger,
        (id, strategy, skip_steps): (&AdapterId, &Strategy, bool),
        now: Timestamp,
    ) {
        // Clients already get a first install that is written but not proven, so a rollback must go to it.
        if let (None, [only]) = (&self.revision.stable, self.weights.desired.as_slice()) {
            self.revision.stable = Some(only.id.clone());
        }
        let unfinished = self.is_unfinished();
        let previous = self.revision.desired.replace(id.clone());
        let adopted = previous.is_none();
        let had_all_requests = skip_steps || self.revision.stable.as_ref() == Some(id);
        if let Some(previous) = previous.filter(|previous| previous != id) {
            let (what, outcome) = if had_all_requests {
                ("is desired again", reason::UNLISTED)
            } else {
                ("superseded it", reason::SUPERSEDED)
            };
            if unfinished {
                self.record_ended(previous.clone(), outcome, now);
            }
            self.retire(previous, format!("{id} {what}"));
        }
        self.take_weight_from_others(id, now);
        self.revision.number += 1;
        self.steps.clone_from(&strategy.steps);
        *self.total_weight = strategy.total_weight;
        *self.lost_since = None;
        let first_install = self.revision.stable.is_none();
        let index = if had_all_requests || first_install { self.steps.len() } else { 0 };
        self.enter_step_from(from, index, trigger, now);
        let message = match (&self.revision.stable, had_all_requests) {
            (None, _) => format!("{id} will be installed: no adapter serves the model yet"),
            (Some(stable), _) if stable == id && adopted => format!("{id} serves all requests already"),
            (Some(stable), true) if stable == id => format!("all requests go back to {id}"),
            (Some(stable), true) => format!("{id} will replace {stable} again, without steps"),
            (Some(stable), false) => format!("{id} will replace {stable} in {} steps", self.steps.len()),
        };
        self.record_event(false, reason::PROGRESSING, message);
    }

    /// Ends the current split, except an adopted one between stable and the desired adapter: that stays until the first
    /// step.
    fn take_weight_from_others(&mut self, desired: &AdapterId, now: Timestamp) {
        let stable = self.revision.stable.as_ref();
        let split = stable != Some(desired) && self.weights.desired.len() > 1;
        let may_stay = |target: &TargetWeight| target.id == *desired || Some(&target.id) == stable;
        if split && self.weights.desired.iter().all(may_stay) {
            return;
        }
        let before = self.weights.desired.clone();
        self.shift_all_to_stable(now);
        for target in before.into_iter().filter(|target| target.id != *desired) {
            if self.weight_of(&target.id) == 0 {
                self.retire(target.id, format!("it lost its weight to {desired}"));
            }
        }
    }

    /// Retires an id, unless it is stable, rejected, or retired in this decision already.
    fn retire(&mut self, id: AdapterId, why: String) {
        let is_retired = self.newly_retired.iter().any(|retired| retired.id == id);
        if !is_retired && self.revision.stable.as_ref() != Some(&id) && !self.is_rejected(&id) {
            self.newly_retired.push(NewlyRetired { id, reason: why, was_stable: false });
        }
    }

    /// Makes the desired adapter stable: every router sends it all requests.
    fn succeed(&mut self, now: Timestamp) {
        let Some(desired) = self.revision.desired.clone() else { return };
        self.set_state(StepState::Done, Trigger::RoutersProven, now);
        let old = self.revision.stable.replace(desired.clone());
        if let Some(old) = old.filter(|old| *old != desired) {
            self.newly_retired.push(NewlyRetired {
                id: old,
                reason: format!("{desired} replaced it"),
                was_stable: true,
            });
        }
        self.record_ended(desired.clone(), reason::SUCCEEDED, now);
        self.record_event(false, reason::SUCCEEDED, format!("{desired} serves all requests"));
    }

    /// Rejects the desired adapter and returns all traffic to stable, in one change of weights.
    pub(crate) fn reject(&mut self, why: &str, outcome: &str, now: Timestamp) {
        let Some(desired) = self.revision.desired.clone() else { return };
        let from = self.current_state();
        let trigger = if outcome == reason::ABORTED { Trigger::Abort } else { Trigger::Failed };
        self.rejected.insert(0, RejectedAdapter { id: desired.clone(), reason: why.to_owned() });
        self.rejected.truncate(MAX_HISTORY);
        self.shift_all_to_stable(now);
        *self.lost_since = None;
        self.set_state_from(from, StepState::AwaitingRouters, trigger, now);
        self.record_ended(desired.clone(), outcome, now);
        self.record_event(true, outcome, format!("{desired} was rejected: {why}"));
    }

    /// Rejects the desired adapter like [`Self::reject`] if stable can take its requests; else returns what blocks
    /// that.
    pub(crate) fn fail(
        &mut self,
        why: &str,
        outcome: &'static str,
        servers: Option<&[ObservedServer]>,
        now: Timestamp,
    ) -> Option<Wait> {
        let desired = self.revision.desired.clone()?;
        let has_weight = self.weight_of(&desired) > 0;
        let Some(stable) = self.revision.stable.clone() else {
            if has_weight {
                return Some(Wait::soon(
                    outcome,
                    format!("{why}; there is no stable adapter to roll back to: list a working adapter"),
                ));
            }
            self.reject(why, outcome, now);
            return None;
        };
        if stable == desired {
            // Stable cannot be rejected: nothing would serve the requests.
            return Some(Wait::soon(
                outcome,
                format!("{why}; {stable} is the stable adapter, and no other one can take its requests"),
            ));
        }
        let stable_serves = servers.is_some_and(|servers| residency::could_serve(&stable, servers));
        if has_weight && !stable_serves {
            let message =
                format!("{why}; cannot roll back, because stable {stable} is not resident on every Ready server");
            return Some(Wait::soon(reason::STABLE_NOT_RESIDENT, message));
        }
        self.reject(why, outcome, now);
        None
    }

    /// Ends the split of a Rollout that is being deleted: all traffic goes to stable. If `stable_is_unlisted`, it goes
    /// to the desired adapter, because stable will be unloaded.
    pub(crate) fn finalize(&mut self, stable_is_unlisted: bool, now: Timestamp) {
        if let (true, Some(desired)) = (stable_is_unlisted, self.revision.desired.clone())
            && self.weight_of(&desired) > 0
        {
            self.set_weights(vec![TargetWeight { id: desired, weight: FULL_WEIGHT }], now);
        } else {
            self.shift_all_to_stable(now);
        }
    }

    fn roll_back(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        if self.step_state() == Some(StepState::Done) {
            return StepProgress::Wait(None);
        }
        if !self.weights.desired.is_empty() && !inputs.proof.is_complete() {
            return StepProgress::Wait(inputs.proof.wait.clone());
        }
        self.set_state(StepState::Done, Trigger::RoutersProven, inputs.now);
        if let Some(stable) = &self.revision.stable {
            let message = format!("{stable} serves all requests again");
            self.record_event(false, reason::ROLLED_BACK, message);
        }
        StepProgress::Continue
    }

    /// Returns why the desired adapter was rejected; `None` if it was not.
    pub(crate) fn rejection(&self) -> Option<&RejectedAdapter> {
        let desired = self.revision.desired.as_ref()?;
        self.rejected.iter().find(|rejected| rejected.id == *desired)
    }

    fn is_rejected(&self, id: &AdapterId) -> bool {
        self.rejected.iter().any(|rejected| rejected.id == *id)
    }

    /// Returns whether the current revision has neither succeeded nor failed yet.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.step_state().is_some_and(|state| state != StepState::Done) && self.rejection().is_none()
    }

    pub(crate) fn step_state(&self) -> Option<StepState> {
        self.step.as_ref().map(|step| step.state)
    }

    /// Returns the current weight of an id; zero if it has none.
    pub(crate) fn weight_of(&self, id: &AdapterId) -> i32 {
        self.weights.desired.iter().find(|target| target.id == *id).map_or(0, |target| target.weight)
    }

    fn shift_all_to_stable(&mut self, now: Timestamp) {
        // Without a rule the servers serve the name directly; writing one would only add a risk.
        if let Some(stable) = self.revision.stable.clone()
            && !self.weights.desired.is_empty()
        {
            self.set_weights(vec![TargetWeight { id: stable, weight: FULL_WEIGHT }], now);
        }
    }

    /// Sets the weights under a new sequence, and returns whether they changed.
    fn set_weights(&mut self, desired: Vec<TargetWeight>, now: Timestamp) -> bool {
        let changed = self.weights.desired != desired;
        if changed {
            self.weights.desired = desired;
            self.weights.sequence = self.weights.sequence.next();
            self.weights.changed_at = Some(now);
        }
        changed
    }

    fn record_ended(&mut self, id: AdapterId, outcome: &str, at: Timestamp) {
        self.history.insert(0, PastRevision { revision: self.revision.number, id, outcome: outcome.to_owned(), at });
        self.history.truncate(MAX_HISTORY);
    }

    fn record_event(&mut self, warning: bool, reason: &str, message: String) {
        self.events.push(RolloutEvent { warning, reason: reason.to_owned(), message });
    }
}

/// The weight of a single target, where any number means all traffic.
pub(crate) const FULL_WEIGHT: i32 = 100;
