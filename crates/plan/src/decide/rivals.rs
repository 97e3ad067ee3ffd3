//! Rewrites of others that would change the effect of ours.

use super::DecisionContext;
use crate::{text, wait::Wait};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    rewrite::{InferenceModelRewrite, RewriteRule},
    rollout::{RolloutStatus, spec::RouterKind},
};
use std::sync::Arc;

impl DecisionContext<'_> {
    /// Finds a rule that an endpoint picker behind ext-proc would apply to requests that ext-proc has already
    /// rewritten: a generic rule, or one for the name of an adapter. Nothing starts while there is one.
    pub(super) fn double_rewrite(&self, status: &RolloutStatus) -> Option<Wait> {
        if self.spec.router != RouterKind::ExtProc {
            return None;
        }
        let ids: Vec<&AdapterId> = status.revision.stable.iter().chain(&status.revision.desired).collect();
        let rewrites = self.observed.rewrites.as_deref().ok()?.iter().filter(|rewrite| self.is_in_pool(rewrite));
        let applies = |rule: &RewriteRule| {
            let generic = rule.matches.is_empty() && !rule.targets.is_empty();
            let renamed = |id: &&&AdapterId| {
                let name = id.as_str();
                name != self.spec.model.as_str()
                    && rule.matches.iter().any(|candidate| candidate.model.value == name)
                    && rule.targets.iter().any(|target| target.model_rewrite != name)
            };
            if generic { Some("every name".to_owned()) } else { ids.iter().find(renamed).map(ToString::to_string) }
        };
        let found = |rewrite: &Arc<InferenceModelRewrite>| {
            let what = rewrite.spec.rules.iter().find_map(applies)?;
            Some(format!(
                "rewrite {} has a rule for {what}: an endpoint picker behind ext-proc would rewrite requests a second \
                 time: remove that rule, or set spec.router to EndpointPicker",
                rewrite.metadata.name
            ))
        };
        let message = rewrites.filter_map(found).min()?;
        Some(Wait::on_change(reason::DOUBLE_REWRITE, message))
    }

    /// Returns a message if the rewrite exists and belongs to another pool.
    pub(super) fn pool_mismatch(&self) -> Option<String> {
        let rewrite = self.rewrite.filter(|rewrite| !self.is_in_pool(rewrite))?;
        let recorded = self.rollout.status.as_ref().and_then(|status| status.rewrite.as_ref());
        // A change of the pool of a rewrite with our weights is a foreign edit, not a conflict.
        if recorded.is_some_and(|known| Some(&known.uid) == rewrite.metadata.uid.as_ref()) {
            return None;
        }
        Some(format!(
            "rewrite {} is for the pool {}, but this Rollout is for {}: name another rewrite in spec.rewriteRef",
            rewrite.metadata.name, rewrite.spec.pool_ref.name, self.spec.pool_ref.name
        ))
    }

    /// Returns a wait while the rewrite is being deleted: a write into it would be lost.
    pub(super) fn terminating_rewrite_wait(&self) -> Option<Wait> {
        if self.rewrite.is_some() {
            return None;
        }
        let mut rewrites = self.observed.rewrites.as_deref().ok()?.iter();
        let name = self.rewrite_name();
        let group = Some(self.observed.new_rewrite_group);
        let terminating = rewrites.find(|rewrite| rewrite.metadata.name == name && rewrite.group() == group)?;
        let finalizers = text::list(&terminating.metadata.finalizers);
        let message = format!(
            "rewrite {name} is being deleted and waits for its finalizers {finalizers}: the operator creates it \
             again when it is gone"
        );
        Some(Wait::on_change(reason::ROUTERS_PENDING, message))
    }

    fn is_in_pool(&self, rewrite: &InferenceModelRewrite) -> bool {
        rewrite.spec.pool_ref.name == self.spec.pool_ref.name && rewrite.metadata.deletion_timestamp.is_none()
    }
}
