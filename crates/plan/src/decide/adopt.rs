//! Adoption: a Rollout without a status takes over what serves its model name, and what the directives record of it.

use super::{Decision, DecisionBuilder, DecisionContext};
use crate::{
    adoption::{self, Adoption},
    desired::DesiredAdapter,
    directives,
    effect::Effect,
    observed::AdapterListing,
    status,
    wait::Wait,
};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    operator_directives::matches_pattern,
    rollout::{
        RolloutStatus,
        status::{RejectedAdapter, RetiredAdapter, RetirementState},
    },
};

impl DecisionContext<'_> {
    /// Takes over what serves the model name. Returns what it waits for if that is not known.
    pub(super) fn adopt(&self, builder: &mut DecisionBuilder, desired: &DesiredAdapter) -> Option<Wait> {
        if self.observed.adapters.is_err() {
            // The directives record what was admitted and rejected before; without them nothing is taken over.
            return self.file_wait();
        }
        if let Err(error) = &self.observed.rollouts {
            // Another Rollout may govern the same model or ids: nothing begins before that is known.
            return Some(Wait::while_unobservable("the other Rollouts cannot be listed", error, self.now));
        }
        if let Some(wait) = self.double_rewrite(&builder.status) {
            return Some(wait);
        }
        let (spec, status) = (self.spec, &mut builder.status);
        match adoption::discover(self.rewrite_name(), &spec.pool_ref, &spec.model, self.uid, self.observed, self.now) {
            Adoption::Pending(wait) => return Some(self.with_unlisted_hint(wait)),
            Adoption::FirstInstall => {}
            Adoption::Found { stable, weights, sequence } => {
                status.admission.admitted = weights.iter().map(|target| target.id.clone()).collect();
                status.admission.admitted.push(stable.clone());
                status.revision.stable = Some(stable);
                // An adopted rule lacks a stamp of this status, and the first router proof needs one.
                status.weights.sequence = if weights.is_empty() { sequence } else { sequence.next() };
                status.weights.desired = weights;
                status.weights.changed_at = Some(self.now);
            }
        }
        self.restore_from_directives(status, desired);
        None
    }

    /// Adds a hint if a serving id is in neither list. Servers that restart wait for every serving id, even without a
    /// status, and cannot load an id that is not listed, so no server becomes Ready.
    fn with_unlisted_hint(&self, wait: Wait) -> Wait {
        let (Some(adapters), Ok(file)) = (self.adapters(), self.adapters_file()) else { return wait };
        let absent = |id: &&AdapterId| AdapterListing::of(id, file) == AdapterListing::Absent;
        let Some(id) = adapters.directives.serving.iter().find(absent).filter(|_| wait.reason == reason::NO_READY_PODS)
        else {
            return wait;
        };
        let message = format!(
            "{}; a restarted server waits for {id} and cannot load it, because it is not listed: list it again",
            wait.message
        );
        Wait { message, ..wait }
    }

    /// Restores from the directives what they record of this Rollout, after its status was lost.
    fn restore_from_directives(&self, status: &mut RolloutStatus, desired: &DesiredAdapter) {
        let (Some(adapters), Some(pattern)) = (self.adapters(), self.spec.adapter.managed_pattern()) else { return };
        let recorded = &adapters.directives;
        let mine = |id: &&AdapterId| matches_pattern(pattern, id.as_str());
        let weights = &status.weights.desired;
        let is_needed = |id: &AdapterId| {
            *desired == DesiredAdapter::Id(id.clone()) || weights.iter().any(|target| target.id == *id)
        };
        let retired =
            recorded.serving.iter().filter(mine).filter(|id| !is_needed(id) && !recorded.rejected.contains(id));
        status.retired.extend(retired.map(|id| RetiredAdapter {
            id: id.clone(),
            since: self.now,
            state: RetirementState::Waiting,
            was_stable: false,
            reason: "it was serving before the status was lost".to_owned(),
        }));
        let pilots = recorded.pilots.iter().filter(|pilot| mine(&&pilot.id)).cloned();
        let (harmed, on_trial): (Vec<_>, Vec<_>) = pilots.partition(|pilot| recorded.rejected.contains(&pilot.id));
        status.admission.past_pilots = harmed;
        status.admission.pilot = on_trial.into_iter().next();
        let admitted = &mut status.admission.admitted;
        admitted.extend(recorded.admitted.iter().filter(mine).cloned());
        admitted.sort_unstable();
        admitted.dedup();
        let reason = "it was rejected before the status was lost";
        // An id that serves now is not rejected, even if it is recorded so: a person has decided otherwise since.
        let (serving, stable) = (&status.weights.desired, status.revision.stable.as_ref());
        let serves = |id: &AdapterId| stable == Some(id) || serving.iter().any(|target| target.id == *id);
        let rejected = recorded.rejected.iter().filter(mine).filter(|id| !serves(id));
        status.admission.retained = rejected.clone().filter(|id| recorded.serving.contains(id)).cloned().collect();
        status.rejected.extend(rejected.map(|id| RejectedAdapter { id: id.clone(), reason: reason.to_owned() }));
    }

    /// Changes no weights, but makes the ids governed, so that sidecars wait for the admission of new ones.
    pub(super) fn wait_for_adoption(&self, mut builder: DecisionBuilder, wait: &Wait) -> Decision {
        self.refuse_intent(&mut builder, &format!("nothing is in progress: {}", wait.message));
        let mut effects = Vec::new();
        // A reference to something that does not exist may be a typing error: nothing is written because of it.
        let is_valid = wait.reason != reason::INVALID;
        if let (true, Some(adapters), Some(pattern)) = (is_valid, self.adapters(), self.spec.adapter.managed_pattern())
            && !adapters.directives.managed.iter().any(|managed| managed == pattern)
        {
            let mut changed = adapters.directives.clone();
            changed.managed.push(pattern.to_owned());
            effects.push(Effect::WriteAdapters { user_text: None, directives: Some(directives::normalize(changed)) });
        }
        status::set_pending(&mut builder, self.rollout, wait, self.now);
        let requeue = self.requeue_after(&builder.status, [wait.requeue].into_iter());
        Decision { status: builder.status, effects, events: builder.events, requeue_after: requeue }
    }
}
