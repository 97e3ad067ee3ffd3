//! The rules in force: one place that a writer changes and every request reads.
//!
//! A change is one atomic swap: a request sees the rules before it or the rules behind it, never a mixture, and
//! never waits. What is counted of a target goes on over every swap.

#[cfg(test)]
mod tests;

use crate::{
    metrics::{MetricsUpdate, RouterMetrics},
    rules::{RewriteKey, RuleIndex, RuleSet},
    usage::UsageRegistry,
};
use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use rollora_api::{
    rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup},
    router_report::RulesReport,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The rules in force for one pool, with what is counted by them. Shared by all requests of a router.
#[derive(Debug)]
pub struct ActiveRules {
    groups: Mutex<Vec<RewriteGroup>>,
    rules: ArcSwap<RuleSet>,
    index: Mutex<RuleIndex>,
    pub(crate) metrics: RouterMetrics,
    pub(crate) usage: UsageRegistry,
}

impl ActiveRules {
    /// No rules yet, for the rewrites of `pool` in `groups`.
    pub fn new(pool: PoolRef, groups: &[RewriteGroup]) -> Self {
        Self {
            groups: Mutex::new(groups.to_vec()),
            rules: ArcSwap::default(),
            index: Mutex::new(RuleIndex::new(pool)),
            metrics: RouterMetrics::new(),
            usage: UsageRegistry::default(),
        }
    }

    /// Tells which groups are read now, for the report. Rewrites of one that is read no more are taken out by
    /// [`Self::delete`] or [`Self::reset`].
    pub fn set_groups(&self, groups: &[RewriteGroup]) {
        groups.clone_into(&mut self.groups());
    }

    fn groups(&self) -> MutexGuard<'_, Vec<RewriteGroup>> {
        // Nothing panics while it is held.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the rules of exactly these rewrites into force.
    pub fn reset(&self, rewrites: &[InferenceModelRewrite]) {
        self.update(|index, series| index.reset(rewrites, series));
    }

    /// Puts the rules of exactly these rewrites of one group into force; those of the other stay.
    pub fn reset_group(&self, group: RewriteGroup, rewrites: &[InferenceModelRewrite]) {
        self.update(|index, series| index.reset_group(group, rewrites, series));
    }

    /// Puts the rules of a new or changed rewrite into force.
    pub fn apply(&self, rewrite: &InferenceModelRewrite) {
        self.update(|index, series| index.apply(rewrite, series));
    }

    /// Takes the rules of a rewrite out of force.
    pub fn delete(&self, key: &RewriteKey) {
        self.update(|index, _| index.delete(key));
    }

    fn update(&self, change: impl FnOnce(&mut RuleIndex, &mut MetricsUpdate<'_>)) {
        let mut index = self.index();
        let mut usages = self.usage.begin_update();
        change(&mut index, &mut self.metrics.begin_update(&mut usages));
        // The targets are remembered before the first request can be sent to them.
        self.usage.commit(usages);
        self.rules.store(Arc::new(index.rules().clone()));
        self.metrics.evict_unused();
    }

    fn index(&self) -> MutexGuard<'_, RuleIndex> {
        // A panic of another writer leaves an index that its next reset repairs; requests do not read it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of this moment.
    pub fn rules(&self) -> Guard<Arc<RuleSet>> {
        self.rules.load()
    }

    /// When a request last used `target`, whether a rule sent it there or the client named it: `now` while there
    /// are requests in flight. None where none was seen, or `target` has never been in a rule.
    pub fn last_used(&self, target: &str, now: Timestamp) -> Option<Timestamp> {
        self.usage.find(target)?.last_used(now)
    }

    /// Whether a rule names `target`, or did so lately.
    pub fn is_known(&self, target: &str) -> bool {
        self.usage.find(target).is_some()
    }

    /// What `GET /rules` answers.
    pub fn report(&self, now: Timestamp) -> RulesReport {
        let (rules, overlaps) = {
            let index = self.index();
            (index.rules().clone(), index.overlaps())
        };
        RulesReport {
            groups: self.groups().iter().map(|group| group.name().to_owned()).collect(),
            models: rules.exact().into_iter().map(|(model, rule)| (model.to_owned(), rule.report())).collect(),
            generic: rules.generic().map(|rule| rule.report()),
            overlaps,
            last_used: self.usage.report(now),
        }
    }

    /// Adds what is counted to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}
