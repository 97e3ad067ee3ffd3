//! A Rollout without a status takes over what serves its name, and what the operator's key remembers of it.

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
    /// Takes over what serves the name already; says what it waits for where that is not known.
    pub(super) fn adopt(&self, draft: &mut DecisionBuilder, wish: &DesiredAdapter) -> Option<Wait> {
        if self.observed.adapters.is_err() {
            // The operator's key says what was admitted and rejected before: without it nothing is taken over.
            return self.file_wait();
        }
        if let Err(error) = &self.observed.rollouts {
            // Somebody else may work on the same: nothing begins before that is known.
            return Some(Wait::while_unobservable("the other Rollouts cannot be listed", error, self.now));
        }
        if let Some(wait) = self.double_rewrite(&draft.status) {
            return Some(wait);
        }
        let (spec, status) = (self.spec, &mut draft.status);
        match adoption::discover(self.rewrite_name(), &spec.pool_ref, &spec.model, self.uid, self.observed, self.now) {
            Adoption::Pending(wait) => return Some(self.with_unlisted_hint(wait)),
            Adoption::FirstInstall => {}
            Adoption::Found { stable, weights, sequence } => {
                status.admission.admitted = weights.iter().map(|target| target.id.clone()).collect();
                status.admission.admitted.push(stable.clone());
                status.revision.stable = Some(stable);
                // An adopted rule has no stamp of this status: its first proof needs one.
                status.weights.sequence = if weights.is_empty() { sequence } else { sequence.next() };
                status.weights.desired = weights;
                status.weights.changed_at = Some(self.now);
            }
        }
        self.restore_from_directives(status, wish);
        None
    }

    /// Servers that restart wait for what serves, whether or not a status knows of it: what nobody lists any more keeps
    /// all of them from being Ready.
    fn with_unlisted_hint(&self, wait: Wait) -> Wait {
        let (Some(adapters), Ok(file)) = (self.adapters(), self.adapters_file()) else { return wait };
        let absent = |id: &&AdapterId| AdapterListing::of(id, file) == AdapterListing::Absent;
        let Some(id) = adapters.directives.serving.iter().find(absent).filter(|_| wait.reason == reason::NO_READY_PODS)
        else {
            return wait;
        };
        let message = format!(
            "{}; a server that restarts waits for {id}, and cannot load what is not listed: list it again",
            wait.message
        );
        Wait { message, ..wait }
    }

    /// What the operator's key remembers of this Rollout when its status was lost.
    fn restore_from_directives(&self, status: &mut RolloutStatus, wish: &DesiredAdapter) {
        let (Some(adapters), Some(pattern)) = (self.adapters(), self.spec.adapter.managed_pattern()) else { return };
        let key = &adapters.directives;
        let mine = |id: &&AdapterId| matches_pattern(pattern, id.as_str());
        let weights = &status.weights.desired;
        let wanted =
            |id: &AdapterId| *wish == DesiredAdapter::Id(id.clone()) || weights.iter().any(|target| target.id == *id);
        let retired = key.serving.iter().filter(mine).filter(|id| !wanted(id) && !key.rejected.contains(id));
        status.retired.extend(retired.map(|id| RetiredAdapter {
            id: id.clone(),
            since: self.now,
            state: RetirementState::Waiting,
            was_stable: false,
            reason: "it was serving before the status was lost".to_owned(),
        }));
        let pilots = key.pilots.iter().filter(|pilot| mine(&&pilot.id)).cloned();
        let (harmed, on_trial): (Vec<_>, Vec<_>) = pilots.partition(|pilot| key.rejected.contains(&pilot.id));
        status.admission.past_pilots = harmed;
        status.admission.pilot = on_trial.into_iter().next();
        let admitted = &mut status.admission.admitted;
        admitted.extend(key.admitted.iter().filter(mine).cloned());
        admitted.sort_unstable();
        admitted.dedup();
        let reason = "it was rejected before the status was lost";
        // What serves now is not rejected, whatever is remembered of it: somebody has decided otherwise.
        let (serving, stable) = (&status.weights.desired, status.revision.stable.as_ref());
        let serves = |id: &AdapterId| stable == Some(id) || serving.iter().any(|target| target.id == *id);
        let rejected = key.rejected.iter().filter(mine).filter(|id| !serves(id));
        status.admission.retained = rejected.clone().filter(|id| key.serving.contains(id)).cloned().collect();
        status.rejected.extend(rejected.map(|id| RejectedAdapter { id: id.clone(), reason: reason.to_owned() }));
    }

    /// Nothing moves, but sidecars have to know that new ids wait for their admission.
    pub(super) fn wait_for_adoption(&self, mut draft: DecisionBuilder, wait: &Wait) -> Decision {
        self.refuse_intent(&mut draft, &format!("nothing is under way: {}", wait.message));
        let mut effects = Vec::new();
        // What a Rollout names that is not there may be a slip of the pen: nothing is written because of it.
        let meant = wait.reason != reason::INVALID;
        if let (true, Some(adapters), Some(pattern)) = (meant, self.adapters(), self.spec.adapter.managed_pattern())
            && !adapters.directives.managed.iter().any(|managed| managed == pattern)
        {
            let mut key = adapters.directives.clone();
            key.managed.push(pattern.to_owned());
            effects.push(Effect::WriteAdapters { user_text: None, directives: Some(directives::normalize(key)) });
        }
        status::set_pending(&mut draft, self.rollout, wait, self.now);
        let requeue = self.requeue_after(&draft.status, [wait.requeue].into_iter());
        Decision { status: draft.status, effects, events: draft.events, requeue_after: requeue }
    }
}
