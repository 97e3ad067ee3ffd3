//! Rules of others that would turn what is decided here into something else.

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
    /// A rule that an endpoint picker behind ext-proc would apply to what ext-proc has rewritten: a generic one, or one
    /// for the very name of an adapter. Nothing starts while there is one.
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
                "rewrite {} has a rule for {what}: an endpoint picker behind ext-proc would rewrite once more what was \
                 rewritten already: remove that rule, or set spec.router to EndpointPicker",
                rewrite.metadata.name
            ))
        };
        let message = rewrites.filter_map(found).min()?;
        Some(Wait::on_change(reason::DOUBLE_REWRITE, message))
    }

    /// The rewrite is there, and carries the rules of another pool.
    pub(super) fn pool_mismatch(&self) -> Option<String> {
        let rewrite = self.rewrite.filter(|rewrite| !self.is_in_pool(rewrite))?;
        let worked_with = self.rollout.status.as_ref().and_then(|status| status.rewrite.as_ref());
        // Whoever changes the pool of a rewrite that carries our weights has made a foreign edit, nothing more.
        if worked_with.is_some_and(|known| Some(&known.uid) == rewrite.metadata.uid.as_ref()) {
            return None;
        }
        Some(format!(
            "rewrite {} is for the pool {}, and this Rollout for {}: name another rewrite in spec.rewriteRef",
            rewrite.metadata.name, rewrite.spec.pool_ref.name, self.spec.pool_ref.name
        ))
    }

    /// The rewrite, where somebody deletes it and it is not gone yet: what is written into it goes with it.
    pub(super) fn terminating_rewrite_wait(&self) -> Option<Wait> {
        if self.rewrite.is_some() {
            return None;
        }
        let mut rewrites = self.observed.rewrites.as_deref().ok()?.iter();
        let name = self.rewrite_name();
        let group = Some(self.observed.new_rewrite_group);
        let leaving = rewrites.find(|rewrite| rewrite.metadata.name == name && rewrite.group() == group)?;
        let finalizers = text::list(&leaving.metadata.finalizers);
        let message =
            format!("rewrite {name} is being deleted, and held back by {finalizers}: it is made again when it is gone");
        Some(Wait::on_change(reason::ROUTERS_PENDING, message))
    }

    fn is_in_pool(&self, rewrite: &InferenceModelRewrite) -> bool {
        rewrite.spec.pool_ref.name == self.spec.pool_ref.name && rewrite.metadata.deletion_timestamp.is_none()
    }
}
