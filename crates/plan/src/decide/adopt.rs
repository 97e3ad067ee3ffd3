//! A Rollout without a status takes over what serves its name, and what the operator's key remembers of it.

use super::{Case, Decision, Draft};
use crate::{
    adoption::{self, Adoption},
    desired::Wish,
    effect::Effect,
    observed::Listing,
    operator_key, report,
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

impl Case<'_> {
    /// Takes over what serves the name already; says what it waits for where that is not known.
    pub(super) fn adopt(&self, draft: &mut Draft, wish: &Wish) -> Option<Wait> {
        if self.world.adapters.is_err() {
            // The operator's key says what was admitted and rejected before: without it nothing is taken over.
            return self.file_wait();
        }
        if let Err(error) = &self.world.rollouts {
            // Somebody else may work on the same: nothing begins before that is known.
            return Some(Wait::for_sight("the other Rollouts cannot be listed", error, self.now));
        }
        if let Some(wait) = self.double_rewrite(&draft.status) {
            return Some(wait);
        }
        let (spec, status) = (self.spec, &mut draft.status);
        match adoption::adopt(self.rewrite_name(), &spec.pool_ref, &spec.model, self.uid, self.world, self.now) {
            Adoption::Waits(wait) => return Some(self.and_what_helps(wait)),
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
        self.remember(status, wish);
        None
    }

    /// Servers that restart wait for what serves, whether or not a status knows of it: what nobody lists any more keeps
    /// all of them from being Ready.
    fn and_what_helps(&self, wait: Wait) -> Wait {
        let (Some(adapters), Ok(file)) = (self.adapters(), self.file()) else { return wait };
        let absent = |id: &&AdapterId| Listing::of(id, file) == Listing::Absent;
        let Some(id) = adapters.key.serving.iter().find(absent).filter(|_| wait.reason == reason::NO_READY_PODS) else {
            return wait;
        };
        let message = format!(
            "{}; a server that restarts waits for {id}, and cannot load what is not listed: list it again",
            wait.message
        );
        Wait { message, ..wait }
    }

    /// What the operator's key remembers of this Rollout when its status was lost.
    fn remember(&self, status: &mut RolloutStatus, wish: &Wish) {
        let (Some(adapters), Some(pattern)) = (self.adapters(), self.spec.adapter.managed_pattern()) else { return };
        let key = &adapters.key;
        let mine = |id: &&AdapterId| matches_pattern(pattern, id.as_str());
        let weights = &status.weights.desired;
        let wanted = |id: &AdapterId| *wish == Wish::Id(id.clone()) || weights.iter().any(|target| target.id == *id);
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
    pub(super) fn wait_for_adoption(&self, mut draft: Draft, wait: &Wait) -> Decision {
        self.refuse_intent(&mut draft, &format!("nothing is under way: {}", wait.message));
        let mut effects = Vec::new();
        // What a Rollout names that is not there may be a slip of the pen: nothing is written because of it.
        let meant = wait.reason != reason::INVALID;
        if let (true, Some(adapters), Some(pattern)) = (meant, self.adapters(), self.spec.adapter.managed_pattern())
            && !adapters.key.managed.iter().any(|managed| managed == pattern)
        {
            let mut key = adapters.key.clone();
            key.managed.push(pattern.to_owned());
            effects.push(Effect::WriteAdapters { user_text: None, key: Some(operator_key::sort(key)) });
        }
        report::pend(&mut draft, self.rollout, wait, self.now);
        let requeue = self.requeue(&draft.status, [wait.again].into_iter());
        Decision { status: draft.status, effects, events: draft.events, requeue }
    }
}
