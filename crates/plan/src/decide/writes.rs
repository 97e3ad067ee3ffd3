//! What is missing between the status and the world.

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
    /// The rewrite first: an abort waits for nothing else.
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
        let key = self.merged_directives(adapters, directives::own_directives(self.spec, status));
        (user_text.is_some() || key.is_some()).then_some(Effect::WriteAdapters { user_text, directives: key })
    }

    /// The operator's key without the entries of this Rollout.
    pub(super) fn directives_without_own(&self) -> Option<Effect> {
        let key = self.merged_directives(self.adapters()?, OperatorDirectives::default())?;
        Some(Effect::WriteAdapters { user_text: None, directives: Some(key) })
    }

    /// The operator's key with `mine`, where it has to change.
    fn merged_directives(&self, adapters: &AdaptersConfigMap, mine: OperatorDirectives) -> Option<OperatorDirectives> {
        // Without the other Rollouts nobody knows whose entries the rest are.
        self.observed.rollouts.as_ref().ok()?;
        let beside: Vec<&Rollout> = self
            .other_rollouts()
            .filter(|other| {
                // By another key of the ConfigMap, too: the operator's key is one for all.
                other.spec.adapters_ref.name == self.spec.adapters_ref.name
                    && other.metadata.namespace == self.rollout.metadata.namespace
            })
            .collect();
        let part = |status: Option<&RolloutStatus>, spec| {
            directives::own_directives(spec, status.unwrap_or(&RolloutStatus::default()))
        };
        let (idle, mut others): (Vec<_>, Vec<_>) = beside
            .iter()
            .map(|other| {
                let idle = other.status.as_ref().is_some_and(|status| status.phase == Phase::Invalid);
                (idle, part(other.status.as_ref(), &other.spec))
            })
            .unzip();
        let ours = mine.managed.clone();
        if beside.iter().any(|other| may_have_lost_status(other)) {
            // Which of the entries are its own is written nowhere else.
            let before = part(self.rollout.status.as_ref(), self.spec).managed;
            others.push(directives::foreign_entries(&adapters.directives, &[before, ours.clone()].concat()));
        }
        let key = directives::merge(&adapters.directives, mine, &others);
        // What others govern is theirs to write down: else all that share a file would write the same. Those that
        // nothing can be done for do not.
        let left = |pattern: &String| {
            let by_idle = idle.iter().zip(&others).any(|(idle, other)| *idle && other.managed.contains(pattern));
            !by_idle && !ours.contains(pattern) && !adapters.directives.managed.contains(pattern)
        };
        let mut urgent = key.clone();
        urgent.managed.retain(|pattern| !left(pattern));
        (urgent != directives::normalize(adapters.directives.clone())).then_some(key)
    }
}

/// Whether a Rollout may work with ids of which its status does not say, because it was lost.
fn may_have_lost_status(rollout: &Rollout) -> bool {
    let Some(status) = &rollout.status else { return true };
    // Whoever says one of these has not begun.
    let idle = [reason::CONFLICT, reason::INVALID, reason::NO_MATCH];
    is_uninitialized(status) && !status.conditions.iter().any(|condition| idle.contains(&condition.reason.as_str()))
}
