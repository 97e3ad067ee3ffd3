//! The active rules: shared state that one writer changes and every request reads.
//!
//! A change is one atomic swap: a request sees the rules before it or the rules after it, never a mixture, and never
//! waits. Metrics and usage of a target continue across swaps.

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

/// The active rules of one pool, with their metrics. Shared by all requests of a router.
#[derive(Debug)]
pub struct ActiveRules {
    groups: Mutex<Vec<RewriteGroup>>,
    rules: ArcSwap<RuleSet>,
    index: Mutex<RuleIndex>,
    pub(crate) metrics: RouterMetrics,
    pub(crate) usage: UsageRegistry,
}

impl ActiveRules {
    /// Creates an empty set of rules that accepts rewrites of `pool`. `groups` are the API groups to report as read.
    pub fn new(pool: PoolRef, groups: &[RewriteGroup]) -> Self {
        Self {
            groups: Mutex::new(groups.to_vec()),
            rules: ArcSwap::default(),
            index: Mutex::new(RuleIndex::new(pool)),
            metrics: RouterMetrics::new(),
            usage: UsageRegistry::default(),
        }
    }

    /// Sets the API groups that are read now, for the report. Rewrites of a group that is no longer read are removed by
    /// [`Self::delete`] or [`Self::reset`].
    pub fn set_groups(&self, groups: &[RewriteGroup]) {
        groups.clone_into(&mut self.groups());
    }

    fn groups(&self) -> MutexGuard<'_, Vec<RewriteGroup>> {
        // No code that holds this lock can panic.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all rules by those of `rewrites`.
    pub fn reset(&self, rewrites: &[InferenceModelRewrite]) {
        self.update(|index, metrics| index.reset(rewrites, metrics));
    }

    /// Replaces the rules of one group by those of `rewrites`; the rules of other groups stay.
    pub fn reset_group(&self, group: RewriteGroup, rewrites: &[InferenceModelRewrite]) {
        self.update(|index, metrics| index.reset_group(group, rewrites, metrics));
    }

    /// Adds the rules of a new rewrite, or replaces the rules of a changed one.
    pub fn apply(&self, rewrite: &InferenceModelRewrite) {
        self.update(|index, metrics| index.apply(rewrite, metrics));
    }

    /// Removes the rules of a rewrite.
    pub fn delete(&self, key: &RewriteKey) {
        self.update(|index, _| index.delete(key));
    }

    fn update(&self, change: impl FnOnce(&mut RuleIndex, &mut MetricsUpdate<'_>)) {
        let mut index = self.index();
        let mut usages = self.usage.begin_update();
        change(&mut index, &mut self.metrics.begin_update(&mut usages));
        // Must happen before the swap: requests look the targets up as soon as they see the new rules.
        self.usage.commit(usages);
        self.rules.store(Arc::new(index.rules().clone()));
        self.metrics.evict_unused();
    }

    fn index(&self) -> MutexGuard<'_, RuleIndex> {
        // A panic in another writer can leave a partial index, which its next reset repairs; requests do not read it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current snapshot of the rules.
    pub fn rules(&self) -> Guard<Arc<RuleSet>> {
        self.rules.load()
    }

    /// Returns when a request last used `target`, by a rule or by naming it: `now` while requests are in flight. `None`
    /// if no request has used it, or if no rule has ever named it.
    pub fn last_used(&self, target: &str, now: Timestamp) -> Option<Timestamp> {
        self.usage.find(target)?.last_used(now)
    }

    /// Returns whether a rule names `target` or named it recently.
    pub fn is_known(&self, target: &str) -> bool {
        self.usage.find(target).is_some()
    }

    /// Returns the content of `GET /rules`.
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

    /// Registers the router's metrics in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}
