//! Cleanup for a Rollout that is being deleted or is gone. The model stays served.
//!
//! Invariants:
//! - While traffic is split, the Rollout has our finalizer: from before the split is written until after it has ended.
//! - A deletion is held back for one write at most, and not at all if the rewrite is gone.

use super::{Decision, DecisionBuilder, DecisionContext, DecisionInput};
use crate::{effect::Effect, observed::AdapterListing, residency, status};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, FINALIZER},
    rollout::{RolloutStatus, status::Revision},
};

impl DecisionContext<'_> {
    /// Moves all traffic to stable, removes the finalizer, and removes our entries from the directives.
    pub(super) fn finalize(&self, mut builder: DecisionBuilder) -> Decision {
        let gone = self.observed.rewrites.is_ok() && self.rewrite.is_none();
        let mut effects = Vec::new();
        if !gone {
            self.observe_rewrite(&mut builder);
            let stable_is_unlisted = self.is_stable_unlisted(&builder.status);
            builder.with_traffic(|traffic| traffic.finalize(stable_is_unlisted, self.now));
            effects.extend(self.rewrite_effect(&builder.status));
        }
        status::set_stalled(&mut builder.status, self.rollout, reason::UNLISTED, &self.deletion_message(), self.now);
        if self.has_finalizer() && self.observed.rewrites.is_ok() && effects.is_empty() {
            if gone && !builder.status.weights.desired.is_empty() {
                let message =
                    format!("rewrite {} is gone: there is no weight to return to stable", self.rewrite_name());
                builder.record_event(false, reason::UNLISTED, message);
            }
            effects.push(Effect::SetFinalizer(false));
        }
        effects.extend(self.directives_without_own());
        let requeue = self.observed.rewrites.is_err().then_some(self.observed.poll_after);
        Decision { effects, status: builder.status, events: builder.events, requeue_after: requeue }
    }

    /// Returns the status message of a deletion, with what blocks it.
    fn deletion_message(&self) -> String {
        let mut parts = vec!["the Rollout is being deleted: the stable adapter continues to serve".to_owned()];
        if let Err(error) = &self.observed.rewrites {
            parts.push(format!("the rewrites cannot be read: {error}"));
        }
        parts.extend(self.observed.write_refusal.clone());
        parts.join("; ")
    }

    /// Returns whether stable is under `ensureNotExist`, and the desired adapter is listed and could take all requests.
    fn is_stable_unlisted(&self, status: &RolloutStatus) -> bool {
        let (Ok(file), Some(servers)) = (self.adapters_file(), self.servers()) else { return false };
        let is_at =
            |id: &Option<AdapterId>, listing| id.as_ref().is_some_and(|id| AdapterListing::of(id, file) == listing);
        let Revision { stable, desired, .. } = &status.revision;
        is_at(stable, AdapterListing::EnsureNotExist)
            && is_at(desired, AdapterListing::EnsureExist)
            && desired.as_ref().is_some_and(|desired| residency::could_serve(desired, servers))
    }

    /// Returns the effect that adds the finalizer, which must be there before a split is written.
    pub(super) fn add_finalizer(&self, status: &RolloutStatus) -> Option<Effect> {
        let needed = self.observed.supports_finalizers && is_split(status) && !self.has_finalizer();
        needed.then_some(Effect::SetFinalizer(true))
    }

    /// Returns the effect that removes the finalizer when no write is left.
    pub(super) fn remove_finalizer(&self, status: &RolloutStatus) -> Option<Effect> {
        let over = self.observed.rewrites.is_ok() && !is_split(status) && self.rewrite_effect(status).is_none();
        (over && self.has_finalizer()).then_some(Effect::SetFinalizer(false))
    }

    fn has_finalizer(&self) -> bool {
        self.observed.supports_finalizers
            && self.rollout.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

/// Returns the write that is left for a Rollout that is gone: the removal of its entries from the directives.
///
/// `None` if the directives have no such entries, or cannot be read.
pub fn finalize_deleted(input: &DecisionInput<'_>, now: Timestamp) -> Option<Effect> {
    DecisionContext::new(input, now).directives_without_own()
}

fn is_split(status: &RolloutStatus) -> bool {
    status.weights.desired.len() > 1
}
