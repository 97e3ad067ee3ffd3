//! The Rollout is being deleted, or is gone: a model is never taken away with it.
//!
//! Invariants:
//! - While traffic is split the Rollout has our finalizer, from before the split is written until after it has ended.
//! - A deletion is held back for one write at most, and for none where there is nothing to write it to.

use super::{Decision, DecisionBuilder, DecisionContext, DecisionInput};
use crate::{effect::Effect, observed::AdapterListing, residency, status};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, FINALIZER},
    rollout::{RolloutStatus, status::Revision},
};

impl DecisionContext<'_> {
    /// Everything goes to stable, the finalizer goes, and our entries leave the operator's key.
    pub(super) fn finalize(&self, mut draft: DecisionBuilder) -> Decision {
        let gone = self.observed.rewrites.is_ok() && self.rewrite.is_none();
        let mut effects = Vec::new();
        if !gone {
            self.observe_rewrite(&mut draft);
            let stable_goes = self.is_stable_unlisted(&draft.status);
            draft.with_traffic(|traffic| traffic.finalize(stable_goes, self.now));
            effects.extend(self.rewrite_effect(&draft.status));
        }
        status::set_stalled(&mut draft.status, self.rollout, reason::UNLISTED, &self.deletion_message(), self.now);
        if self.has_finalizer() && self.observed.rewrites.is_ok() && effects.is_empty() {
            if gone && !draft.status.weights.desired.is_empty() {
                let message = format!("rewrite {} is gone: there is nothing to give back", self.rewrite_name());
                draft.record_event(false, reason::UNLISTED, message);
            }
            effects.push(Effect::SetFinalizer(false));
        }
        effects.extend(self.directives_without_own());
        let requeue = self.observed.rewrites.is_err().then_some(self.observed.poll_after);
        Decision { effects, status: draft.status, events: draft.events, requeue_after: requeue }
    }

    /// What happens, and what keeps it from happening.
    fn deletion_message(&self) -> String {
        let mut words = vec!["it is being deleted: what is stable goes on serving".to_owned()];
        if let Err(error) = &self.observed.rewrites {
            words.push(format!("the rewrites cannot be read: {error}"));
        }
        words.extend(self.observed.write_refusal.clone());
        words.join("; ")
    }

    /// Whether the file unlists stable, and lists the desired adapter, which could take everything.
    fn is_stable_unlisted(&self, status: &RolloutStatus) -> bool {
        let (Ok(file), Some(servers)) = (self.adapters_file(), self.servers()) else { return false };
        let stands = |id: &Option<AdapterId>, at| id.as_ref().is_some_and(|id| AdapterListing::of(id, file) == at);
        let Revision { stable, desired, .. } = &status.revision;
        stands(stable, AdapterListing::EnsureNotExist)
            && stands(desired, AdapterListing::EnsureExist)
            && desired.as_ref().is_some_and(|desired| residency::could_serve(desired, servers))
    }

    /// What has to be done about the finalizer before the rewrite is written: it is there before traffic is split.
    pub(super) fn add_finalizer(&self, status: &RolloutStatus) -> Option<Effect> {
        let needed = self.observed.supports_finalizers && is_split(status) && !self.has_finalizer();
        needed.then_some(Effect::SetFinalizer(true))
    }

    /// What has to be done about it when nothing is left to write.
    pub(super) fn remove_finalizer(&self, status: &RolloutStatus) -> Option<Effect> {
        let over = self.observed.rewrites.is_ok() && !is_split(status) && self.rewrite_effect(status).is_none();
        (over && self.has_finalizer()).then_some(Effect::SetFinalizer(false))
    }

    fn has_finalizer(&self) -> bool {
        self.observed.supports_finalizers
            && self.rollout.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

/// What is left to do for a Rollout that is gone: its entries leave the operator's key.
pub fn finalize_deleted(input: &DecisionInput<'_>, now: Timestamp) -> Option<Effect> {
    DecisionContext::new(input, now).directives_without_own()
}

fn is_split(status: &RolloutStatus) -> bool {
    status.weights.desired.len() > 1
}
