//! The Rollout is being deleted, or is gone: a model is never taken away with it.
//!
//! Invariants:
//! - While traffic is split the Rollout has our finalizer, from before the split is written until after it has ended.
//! - A deletion is held back for one write at most, and for none where there is nothing to write it to.

use super::{Case, Decision, Draft, Input};
use crate::{effect::Effect, observed::Listing, report, residency};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, FINALIZER},
    rollout::{RolloutStatus, status::Revision},
};

impl Case<'_> {
    /// Everything goes to stable, the finalizer goes, and our entries leave the operator's key.
    pub(super) fn depart(&self, mut draft: Draft) -> Decision {
        let gone = self.world.rewrites.is_ok() && self.rewrite.is_none();
        let mut effects = Vec::new();
        if !gone {
            self.compare_rewrite(&mut draft);
            let stable_goes = self.stable_goes(&draft.status);
            draft.traffic(|traffic| traffic.leave(stable_goes, self.now));
            effects.extend(self.rewrite_effect(&draft.status));
        }
        report::stall(&mut draft.status, self.rollout, reason::UNLISTED, &self.farewell_words(), self.now);
        if self.is_guarded() && self.world.rewrites.is_ok() && effects.is_empty() {
            if gone && !draft.status.weights.desired.is_empty() {
                let message = format!("rewrite {} is gone: there is nothing to give back", self.rewrite_name());
                draft.say(false, reason::UNLISTED, message);
            }
            effects.push(Effect::GuardDeletion(false));
        }
        effects.extend(self.key_without_us());
        let requeue = self.world.rewrites.is_err().then_some(self.world.news_in);
        Decision { effects, status: draft.status, events: draft.events, requeue }
    }

    /// What happens, and what keeps it from happening.
    fn farewell_words(&self) -> String {
        let mut words = vec!["it is being deleted: what is stable goes on serving".to_owned()];
        if let Err(error) = &self.world.rewrites {
            words.push(format!("the rewrites cannot be read: {error}"));
        }
        words.extend(self.world.refused.clone());
        words.join("; ")
    }

    /// Whether the file unlists stable, and lists the desired adapter, which could take everything.
    fn stable_goes(&self, status: &RolloutStatus) -> bool {
        let (Ok(file), Some(servers)) = (self.file(), self.servers()) else { return false };
        let stands = |id: &Option<AdapterId>, at| id.as_ref().is_some_and(|id| Listing::of(id, file) == at);
        let Revision { stable, desired, .. } = &status.revision;
        stands(stable, Listing::NotExist)
            && stands(desired, Listing::Exist)
            && desired.as_ref().is_some_and(|desired| residency::could_serve(desired, servers))
    }

    /// What has to be done about the finalizer before the rewrite is written: it is there before traffic is split.
    pub(super) fn guard(&self, status: &RolloutStatus) -> Option<Effect> {
        let needed = self.world.guards_deletion && is_split(status) && !self.is_guarded();
        needed.then_some(Effect::GuardDeletion(true))
    }

    /// What has to be done about it when nothing is left to write.
    pub(super) fn unguard(&self, status: &RolloutStatus) -> Option<Effect> {
        let over = self.world.rewrites.is_ok() && !is_split(status) && self.rewrite_effect(status).is_none();
        (over && self.is_guarded()).then_some(Effect::GuardDeletion(false))
    }

    fn is_guarded(&self) -> bool {
        self.world.guards_deletion && self.rollout.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

/// What is left to do for a Rollout that is gone: its entries leave the operator's key.
pub fn farewell(input: &Input<'_>, now: Timestamp) -> Option<Effect> {
    Case::new(input, now).key_without_us()
}

fn is_split(status: &RolloutStatus) -> bool {
    status.weights.desired.len() > 1
}
