//! The effects: writes that are missing between the status and the observed state.

use super::{DecisionContext, is_uninitialized};
use crate::{
    directives,
    effect::Effect,
    observed::AdaptersConfigMap,
    retire,
    rewrite::{self, DesiredRewrite},
};
use rollora_api::{
    condition::reason,
    operator_directives::OperatorDirectives,
    rollout::{Rollout, RolloutStatus, status::Phase},
};

impl DecisionContext<'_> {
    /// Returns all missing writes. The rewrite comes before the adapters: an abort waits for nothing else.
    pub(super) fn effects(&self, status: &RolloutStatus) -> Vec<Effect> {
        let guard = self.add_finalizer(status).into_iter();
        let writes = guard.chain(self.rewrite_effect(status)).chain(self.adapters_effect(status));
        writes.chain(self.remove_finalizer(status)).collect()
    }

    pub(super) fn desired_rewrite<'b>(&'b self, status: &'b RolloutStatus) -> DesiredRewrite<'b> {
        DesiredRewrite {
            name: self.rewrite_name(),
            group: self.observed.new_rewrite_group,
            namespace: self.rollout.metadata.namespace.as_deref(),
            model: &self.spec.model,
            pool: &self.spec.pool_ref,
            rollout_uid: self.uid,
            weights: &status.weights,
            stable: status.revision.stable.as_ref(),
            sticky_header: self.spec.strategy.sticky_header.as_deref(),
        }
    }

    pub(super) fn rewrite_effect(&self, status: &RolloutStatus) -> Option<Effect> {
        let may_write = self.observed.rewrites.is_ok() && !status.weights.desired.is_empty();
        if !may_write || self.contested_until(status).is_some() || self.terminating_rewrite_wait().is_some() {
            return None;
        }
        let edited = rewrite::updated(self.rewrite, self.desired_rewrite(status))?;
        Some(Effect::WriteRewrite(Box::new(edited)))
    }

    fn adapters_effect(&self, status: &RolloutStatus) -> Option<Effect> {
        let adapters = self.adapters()?;
        let user_text = retire::edit_adapters_file(self.spec, status, adapters);
        let directives = self.merged_directives(adapters, directives::own_directives(self.spec, status));
        (user_text.is_some() || directives.is_some()).then_some(Effect::WriteAdapters { user_text, directives })
    }

    /// Returns the write of the directives without the entries of this Rollout.
    pub(super) fn directives_without_own(&self) -> Option<Effect> {
        let directives = self.merged_directives(self.adapters()?, OperatorDirectives::default())?;
        Some(Effect::WriteAdapters { user_text: None, directives: Some(directives) })
    }

    /// Returns the directives with `mine`; `None` if they need no write.
    fn merged_directives(&self, adapters: &AdaptersConfigMap, mine: OperatorDirectives) -> Option<OperatorDirectives> {
        // Without the other Rollouts it is not known which of the remaining entries are theirs.
        self.observed.rollouts.as_ref().ok()?;
        let sharing: Vec<&Rollout> = self
            .other_rollouts()
            .filter(|other| {
                // Also if it uses another key of the ConfigMap: all share one key with the directives.
                other.spec.adapters_ref.name == self.spec.adapters_ref.name
                    && other.metadata.namespace == self.rollout.metadata.namespace
            })
            .collect();
        let part = |status: Option<&RolloutStatus>, spec| {
            directives::own_directives(spec, status.unwrap_or(&RolloutStatus::default()))
        };
        let (idle, mut others): (Vec<_>, Vec<_>) = sharing
            .iter()
            .map(|other| {
                let idle = other.status.as_ref().is_some_and(|status| status.phase == Phase::Invalid);
                (idle, part(other.status.as_ref(), &other.spec))
            })
            .unzip();
        let ours = mine.managed.clone();
        if sharing.iter().any(|other| may_have_lost_status(other)) {
            // Its entries are recorded nowhere else, so all foreign entries are kept.
            let before = part(self.rollout.status.as_ref(), self.spec).managed;
            others.push(directives::foreign_entries(&adapters.directives, &[before, ours.clone()].concat()));
        }
        let merged = directives::merge(&adapters.directives, mine, &others);
        // Patterns of others are left for them to write: otherwise every Rollout that shares the file would write the
        // same. Invalid Rollouts do not write, so theirs are written here.
        let is_left_to_others = |pattern: &String| {
            let by_idle = idle.iter().zip(&others).any(|(idle, other)| *idle && other.managed.contains(pattern));
            !by_idle && !ours.contains(pattern) && !adapters.directives.managed.contains(pattern)
        };
        let mut urgent = merged.clone();
        urgent.managed.retain(|pattern| !is_left_to_others(pattern));
        (urgent != directives::normalize(adapters.directives.clone())).then_some(merged)
    }
}

/// Returns whether a Rollout may use ids that its status does not name, because the status was lost.
fn may_have_lost_status(rollout: &Rollout) -> bool {
    let Some(status) = &rollout.status else { return true };
    // A Rollout with one of these reasons has not begun.
    let idle = [reason::CONFLICT, reason::INVALID, reason::NO_MATCH];
    is_uninitialized(status) && !status.conditions.iter().any(|condition| idle.contains(&condition.reason.as_str()))
}
