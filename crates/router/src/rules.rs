//! Rule precedence: [`RuleIndex`] holds all rewrites, [`RuleSet`] returns the active rule of a model.
//!
//! A rewrite of the current group that matches the model precedes every legacy one. Within a group an exact match
//! precedes a generic one; then the older object, then namespace and name, then the order of the rules decide. So equal
//! rewrites give equal rules at every replica, in whatever order they arrived. The selected model is not matched again.
//!
//! Rewrites of other pools, of other groups, and those that are being deleted are ignored.

mod compiled;
#[cfg(test)]
mod tests;

pub use compiled::{CompiledRule, RuleTarget};

use crate::metrics::MetricsUpdate;
use rollora_api::{
    rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup},
    router_report::Overlap,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

const GROUP_COUNT: usize = 2;

/// Position of a group in the precedence of groups.
fn group_index(group: RewriteGroup) -> usize {
    match group {
        RewriteGroup::Current => 0,
        RewriteGroup::Legacy => 1,
    }
}

/// Identity of a rewrite object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RewriteKey {
    /// API group of the object.
    pub group: RewriteGroup,
    /// Namespace of the object; `None` with `rollora local`, which has no namespaces.
    pub namespace: Option<String>,
    /// Name of the object.
    pub name: String,
}

impl RewriteKey {
    /// Returns the key of `rewrite`. `None` if its API group is not one of [`RewriteGroup`].
    pub fn of(rewrite: &InferenceModelRewrite) -> Option<Self> {
        let metadata = &rewrite.metadata;
        Some(Self { group: rewrite.group()?, namespace: metadata.namespace.clone(), name: metadata.name.clone() })
    }
}

/// Immutable snapshot of the active rules; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    groups: [GroupRules; GROUP_COUNT],
    sticky_headers: Vec<Arc<str>>,
}

#[derive(Debug, Clone, Default)]
struct GroupRules {
    exact: HashMap<Arc<str>, Arc<CompiledRule>>,
    generic: Option<Arc<CompiledRule>>,
}

impl RuleSet {
    /// Returns the active rule for `model`. A request without a name can only match a generic rule.
    pub fn find(&self, model: Option<&str>) -> Option<&Arc<CompiledRule>> {
        self.groups.iter().find_map(|group| model.and_then(|model| group.exact.get(model)).or(group.generic.as_ref()))
    }

    /// Returns the models that a rule matches exactly, with their active rules.
    pub fn exact(&self) -> BTreeMap<&str, &Arc<CompiledRule>> {
        let models = self.groups.iter().flat_map(|group| group.exact.keys());
        models
            .filter_map(|model| Some((&**model, self.find(Some(model)).filter(|rule| rule.model().is_some())?)))
            .collect()
    }

    /// Returns the active rule for models without an exact rule. `None` if there is no generic rule.
    pub fn generic(&self) -> Option<&Arc<CompiledRule>> {
        self.find(None)
    }

    /// Returns the distinct names of sticky headers, in lower case.
    pub(crate) fn sticky_headers(&self) -> &[Arc<str>] {
        &self.sticky_headers
    }
}

/// All rewrites and their rules. One writer owns it; requests use clones of [`RuleIndex::rules`].
#[derive(Debug)]
pub(crate) struct RuleIndex {
    pool: PoolRef,
    by_rewrite: HashMap<RewriteKey, Vec<Arc<CompiledRule>>>,
    competing: [CompetingRules; GROUP_COUNT],
    /// Number of rules that use each sticky header.
    sticky_headers: BTreeMap<Arc<str>, usize>,
    rules: RuleSet,
}

/// All rules of one group, by model and in precedence order; the first one is active.
#[derive(Debug, Default)]
struct CompetingRules {
    exact: HashMap<Arc<str>, Vec<Arc<CompiledRule>>>,
    generic: Vec<Arc<CompiledRule>>,
}

impl CompetingRules {
    fn matching(&mut self, rule: &CompiledRule) -> &mut Vec<Arc<CompiledRule>> {
        match rule.model() {
            Some(model) => self.exact.entry(Arc::clone(model)).or_default(),
            None => &mut self.generic,
        }
    }
}

impl RuleIndex {
    pub(crate) fn new(pool: PoolRef) -> Self {
        Self {
            pool,
            by_rewrite: HashMap::new(),
            competing: Default::default(),
            sticky_headers: BTreeMap::new(),
            rules: RuleSet::default(),
        }
    }

    /// Returns the active rules.
    pub(crate) fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Adds a new rewrite or replaces a changed one.
    pub(crate) fn apply(&mut self, rewrite: &InferenceModelRewrite, metrics: &mut MetricsUpdate<'_>) {
        let Some(key) = RewriteKey::of(rewrite) else { return };
        let reference = &rewrite.spec.pool_ref;
        let is_of_pool = reference.name == self.pool.name && reference.group == self.pool.group;
        let is_relevant = is_of_pool && rewrite.metadata.deletion_timestamp.is_none();
        let rules = if is_relevant { compiled::compile(&key, rewrite, metrics) } else { Vec::new() };
        self.replace(&key, rules);
    }

    /// Removes a rewrite and its rules.
    pub(crate) fn delete(&mut self, key: &RewriteKey) {
        self.replace(key, Vec::new());
    }

    /// Replaces all rewrites of all groups.
    pub(crate) fn reset(&mut self, rewrites: &[InferenceModelRewrite], metrics: &mut MetricsUpdate<'_>) {
        *self = Self::new(self.pool.clone());
        for rewrite in rewrites {
            self.apply(rewrite, metrics);
        }
    }

    /// Replaces the rewrites of `group`; any of another group are ignored.
    pub(crate) fn reset_group(
        &mut self,
        group: RewriteGroup,
        rewrites: &[InferenceModelRewrite],
        metrics: &mut MetricsUpdate<'_>,
    ) {
        let of_group = rewrites.iter().filter(|rewrite| rewrite.group() == Some(group));
        let present: HashSet<RewriteKey> = of_group.clone().filter_map(RewriteKey::of).collect();
        let removed: Vec<RewriteKey> =
            self.by_rewrite.keys().filter(|key| key.group == group && !present.contains(key)).cloned().collect();
        for key in &removed {
            self.delete(key);
        }
        for rewrite in of_group {
            self.apply(rewrite, metrics);
        }
    }

    fn replace(&mut self, key: &RewriteKey, rules: Vec<Arc<CompiledRule>>) {
        let before = self.by_rewrite.remove(key).unwrap_or_default();
        for rule in &before {
            let competing = self.competing[group_index(key.group)].matching(rule);
            competing.retain(|other| !Arc::ptr_eq(other, rule));
        }
        for rule in &rules {
            let competing = self.competing[group_index(key.group)].matching(rule);
            let position = competing.partition_point(|other| other.rank() < rule.rank());
            competing.insert(position, Arc::clone(rule));
        }
        for rule in before.iter().chain(&rules) {
            self.update_winner(key.group, rule);
        }
        self.update_sticky_headers(&before, &rules);
        if !rules.is_empty() {
            self.by_rewrite.insert(key.clone(), rules);
        }
    }

    /// Activates the first of the rules that compete with `rule`.
    fn update_winner(&mut self, group: RewriteGroup, rule: &CompiledRule) {
        let (competing, rules) = (&mut self.competing[group_index(group)], &mut self.rules.groups[group_index(group)]);
        let winner = competing.matching(rule).first().cloned();
        match (rule.model(), winner) {
            (None, winner) => rules.generic = winner,
            (Some(model), Some(winner)) => drop(rules.exact.insert(Arc::clone(model), winner)),
            (Some(model), None) => {
                competing.exact.remove(model);
                rules.exact.remove(model);
            }
        }
    }

    fn update_sticky_headers(&mut self, before: &[Arc<CompiledRule>], after: &[Arc<CompiledRule>]) {
        for header in after.iter().filter_map(|rule| rule.sticky_header()) {
            *self.sticky_headers.entry(Arc::clone(header)).or_default() += 1;
        }
        for header in before.iter().filter_map(|rule| rule.sticky_header()) {
            *self.sticky_headers.entry(Arc::clone(header)).or_default() -= 1;
        }
        self.sticky_headers.retain(|_, rules| *rules > 0);
        self.rules.sticky_headers = self.sticky_headers.keys().cloned().collect();
    }

    /// Returns the models that more than one rule matches, with the active and the shadowed rules.
    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let models: BTreeSet<&Arc<str>> = self.competing.iter().flat_map(|competing| competing.exact.keys()).collect();
        let exact = models.into_iter().filter_map(|model| {
            let competing = self.competing.iter().filter_map(|competing| competing.exact.get(model)).flatten();
            self.overlap(Some(model), competing)
        });
        let generic = self.overlap(None, self.competing.iter().flat_map(|competing| &competing.generic));
        exact.chain(generic).collect()
    }

    fn overlap<'r>(
        &self,
        model: Option<&str>,
        competing: impl Iterator<Item = &'r Arc<CompiledRule>>,
    ) -> Option<Overlap> {
        let active = self.rules.find(model)?;
        let mut shadowed: Vec<String> =
            competing.filter(|rule| !Arc::ptr_eq(rule, active)).map(|rule| rule.source().to_string()).collect();
        shadowed.dedup();
        (!shadowed.is_empty()).then(|| Overlap {
            model: model.map(str::to_owned),
            active: active.source().to_string(),
            shadowed,
        })
    }
}
