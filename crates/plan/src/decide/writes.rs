//! What is missing between the status and the world.

use super::{Case, is_blank};
use crate::{
    effect::Effect,
    observed::Adapters,
    operator_key, retire,
    rewrite::{self, Wanted},
};
use rollora_api::{
    condition::reason,
    operator_directives::OperatorDirectives,
    rollout::{Rollout, RolloutStatus, status::Phase},
};

impl Case<'_> {
    /// The rewrite first: an abort waits for nothing else.
    pub(super) fn effects(&self, status: &RolloutStatus) -> Vec<Effect> {
        let guard = self.guard(status).into_iter();
        let writes = guard.chain(self.rewrite_effect(status)).chain(self.adapters_effect(status));
        writes.chain(self.unguard(status)).collect()
    }

    pub(super) fn wanted<'b>(&'b self, status: &'b RolloutStatus) -> Wanted<'b> {
        Wanted {
            name: self.rewrite_name(),
            group: self.world.new_rewrite_group,
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
        let may_write = self.world.rewrites.is_ok() && !status.weights.desired.is_empty();
        if !may_write || self.contest_end(status).is_some() || self.rewrite_on_its_way_out().is_some() {
            return None;
        }
        let edited = rewrite::edited(self.rewrite, self.wanted(status))?;
        Some(Effect::WriteRewrite(Box::new(edited)))
    }

    fn adapters_effect(&self, status: &RolloutStatus) -> Option<Effect> {
        let adapters = self.adapters()?;
        let user_text = retire::edit(self.spec, status, adapters);
        let key = self.key(adapters, operator_key::part(self.spec, status));
        (user_text.is_some() || key.is_some()).then_some(Effect::WriteAdapters { user_text, key })
    }

    /// The operator's key without the entries of this Rollout.
    pub(super) fn key_without_us(&self) -> Option<Effect> {
        let key = self.key(self.adapters()?, OperatorDirectives::default())?;
        Some(Effect::WriteAdapters { user_text: None, key: Some(key) })
    }

    /// The operator's key with `mine`, where it has to change.
    fn key(&self, adapters: &Adapters, mine: OperatorDirectives) -> Option<OperatorDirectives> {
        // Without the other Rollouts nobody knows whose entries the rest are.
        self.world.rollouts.as_ref().ok()?;
        let beside: Vec<&Rollout> = self
            .others()
            .filter(|other| {
                // By another key of the ConfigMap, too: the operator's key is one for all.
                other.spec.adapters_ref.name == self.spec.adapters_ref.name
                    && other.metadata.namespace == self.rollout.metadata.namespace
            })
            .collect();
        let part = |status: Option<&RolloutStatus>, spec| {
            operator_key::part(spec, status.unwrap_or(&RolloutStatus::default()))
        };
        let (idle, mut others): (Vec<_>, Vec<_>) = beside
            .iter()
            .map(|other| {
                let idle = other.status.as_ref().is_some_and(|status| status.phase == Phase::Invalid);
                (idle, part(other.status.as_ref(), &other.spec))
            })
            .unzip();
        let ours = mine.managed.clone();
        if beside.iter().any(|other| is_unknown(other)) {
            // Which of the entries are its own is written nowhere else.
            let before = part(self.rollout.status.as_ref(), self.spec).managed;
            others.push(operator_key::foreign(&adapters.key, &[before, ours.clone()].concat()));
        }
        let key = operator_key::merge(&adapters.key, mine, &others);
        // What others govern is theirs to write down: else all that share a file would write the same. Those that
        // nothing can be done for do not.
        let left = |pattern: &String| {
            let by_idle = idle.iter().zip(&others).any(|(idle, other)| *idle && other.managed.contains(pattern));
            !by_idle && !ours.contains(pattern) && !adapters.key.managed.contains(pattern)
        };
        let mut urgent = key.clone();
        urgent.managed.retain(|pattern| !left(pattern));
        (urgent != operator_key::sort(adapters.key.clone())).then_some(key)
    }
}

/// Whether a Rollout may work with ids of which its status does not say, because it was lost.
fn is_unknown(rollout: &Rollout) -> bool {
    let Some(status) = &rollout.status else { return true };
    // Whoever says one of these has not begun.
    let idle = [reason::CONFLICT, reason::INVALID, reason::NO_MATCH];
    is_blank(status) && !status.conditions.iter().any(|condition| idle.contains(&condition.reason.as_str()))
}
