//! The rules in force, out of a set of rewrites: [`RuleIndex`] takes rewrites in and out, [`Rules`] answers which
//! rule a model gets.
//!
//! Precedence: a rewrite of the current group that matches the model goes before every legacy one; within a group
//! an exact match goes before a generic one; then the older object, then namespace and name, then the order of
//! the rules. So the same rewrites give the same answer at every replica, in whatever order they arrived. A
//! target is not matched again.
//!
//! Rewrites of other pools, of other groups, and those that are being deleted are as if they were not there.

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

/// How many groups there are.
const GROUP_COUNT: usize = 2;

/// The place of a group in their precedence.
fn group_index(group: RewriteGroup) -> usize {
    match group {
        RewriteGroup::Current => 0,
        RewriteGroup::Legacy => 1,
    }
}

/// Which object: group, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RewriteKey {
    /// The object's group.
    pub group: RewriteGroup,
    /// The object's namespace; none on one machine.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

impl RewriteKey {
    /// The key of `rewrite`; none where its group is not one that is read.
    pub fn of(rewrite: &InferenceModelRewrite) -> Option<Self> {
        let metadata = &rewrite.metadata;
        Some(Self { group: rewrite.group()?, namespace: metadata.namespace.clone(), name: metadata.name.clone() })
    }
}

/// The rules in force: cheap to copy, never changed.
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
    /// The rule that a request for `model` gets. A request without a name can only get a generic one.
    pub fn find(&self, model: Option<&str>) -> Option<&Arc<CompiledRule>> {
        self.groups.iter().find_map(|group| model.and_then(|model| group.exact.get(model)).or(group.generic.as_ref()))
    }

    /// The models that a rule matches exactly, with the rules in force for them.
    pub fn exact(&self) -> BTreeMap<&str, &Arc<CompiledRule>> {
        let models = self.groups.iter().flat_map(|group| group.exact.keys());
        models
            .filter_map(|model| Some((&**model, self.find(Some(model)).filter(|rule| rule.model().is_some())?)))
            .collect()
    }

    /// The rule for every other model.
    pub fn generic(&self) -> Option<&Arc<CompiledRule>> {
        self.find(None)
    }

    /// The request headers that keep clients on a target, lower case, each once.
    pub(crate) fn sticky_headers(&self) -> &[Arc<str>] {
        &self.sticky_headers
    }
}

/// Takes rewrites in and out. One writer keeps it; requests see the copies of [`RuleIndex::rules`].
#[derive(Debug)]
pub(crate) struct RuleIndex {
    pool: PoolRef,
    by_rewrite: HashMap<RewriteKey, Vec<Arc<CompiledRule>>>,
    competing: [CompetingRules; GROUP_COUNT],
    /// How many rules have each sticky header.
    sticky_headers: BTreeMap<Arc<str>, usize>,
    rules: RuleSet,
}

/// All rules of a group, those that lose too: per model in their precedence.
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

    /// The rules in force now.
    pub(crate) fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Takes in a rewrite, new or changed.
    pub(crate) fn apply(&mut self, rewrite: &InferenceModelRewrite, series: &mut MetricsUpdate<'_>) {
        let Some(key) = RewriteKey::of(rewrite) else { return };
        let reference = &rewrite.spec.pool_ref;
        let is_ours = reference.name == self.pool.name && reference.group == self.pool.group;
        let counts = is_ours && rewrite.metadata.deletion_timestamp.is_none();
        let rules = if counts { compiled::compile(&key, rewrite, series) } else { Vec::new() };
        self.replace(&key, rules);
    }

    /// Takes out a rewrite.
    pub(crate) fn delete(&mut self, key: &RewriteKey) {
        self.replace(key, Vec::new());
    }

    /// Makes these rewrites the only ones.
    pub(crate) fn reset(&mut self, rewrites: &[InferenceModelRewrite], series: &mut MetricsUpdate<'_>) {
        *self = Self::new(self.pool.clone());
        for rewrite in rewrites {
            self.apply(rewrite, series);
        }
    }

    /// Makes these rewrites the only ones of `group`; any that are not of it are as if they were not there.
    pub(crate) fn reset_group(
        &mut self,
        group: RewriteGroup,
        rewrites: &[InferenceModelRewrite],
        series: &mut MetricsUpdate<'_>,
    ) {
        let of_group = rewrites.iter().filter(|rewrite| rewrite.group() == Some(group));
        let wanted: HashSet<RewriteKey> = of_group.clone().filter_map(RewriteKey::of).collect();
        let gone: Vec<RewriteKey> =
            self.by_rewrite.keys().filter(|key| key.group == group && !wanted.contains(key)).cloned().collect();
        for key in &gone {
            self.delete(key);
        }
        for rewrite in of_group {
            self.apply(rewrite, series);
        }
    }

    fn replace(&mut self, key: &RewriteKey, rules: Vec<Arc<CompiledRule>>) {
        let before = self.by_rewrite.remove(key).unwrap_or_default();
        for rule in &before {
            let claims = self.competing[group_index(key.group)].matching(rule);
            claims.retain(|other| !Arc::ptr_eq(other, rule));
        }
        for rule in &rules {
            let claims = self.competing[group_index(key.group)].matching(rule);
            let place = claims.partition_point(|other| other.rank() < rule.rank());
            claims.insert(place, Arc::clone(rule));
        }
        for rule in before.iter().chain(&rules) {
            self.update_winner(key.group, rule);
        }
        self.update_sticky_headers(&before, &rules);
        if !rules.is_empty() {
            self.by_rewrite.insert(key.clone(), rules);
        }
    }

    /// Puts the first of the claims that `rule` is among into force.
    fn update_winner(&mut self, group: RewriteGroup, rule: &CompiledRule) {
        let (claims, rules) = (&mut self.competing[group_index(group)], &mut self.rules.groups[group_index(group)]);
        let winner = claims.matching(rule).first().cloned();
        match (rule.model(), winner) {
            (None, winner) => rules.generic = winner,
            (Some(model), Some(winner)) => drop(rules.exact.insert(Arc::clone(model), winner)),
            (Some(model), None) => {
                claims.exact.remove(model);
                rules.exact.remove(model);
            }
        }
    }

    fn update_sticky_headers(&mut self, before: &[Arc<CompiledRule>], now: &[Arc<CompiledRule>]) {
        for header in now.iter().filter_map(|rule| rule.sticky_header()) {
            *self.sticky_headers.entry(Arc::clone(header)).or_default() += 1;
        }
        for header in before.iter().filter_map(|rule| rule.sticky_header()) {
            *self.sticky_headers.entry(Arc::clone(header)).or_default() -= 1;
        }
        self.sticky_headers.retain(|_, rules| *rules > 0);
        self.rules.sticky_headers = self.sticky_headers.keys().cloned().collect();
    }

    /// The models that more than one rule matches, and which of them is in force.
    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let models: BTreeSet<&Arc<str>> = self.competing.iter().flat_map(|claims| claims.exact.keys()).collect();
        let exact = models.into_iter().filter_map(|model| {
            let claims = self.competing.iter().filter_map(|claims| claims.exact.get(model)).flatten();
            self.overlap(Some(model), claims)
        });
        let generic = self.overlap(None, self.competing.iter().flat_map(|claims| &claims.generic));
        exact.chain(generic).collect()
    }

    fn overlap<'r>(&self, model: Option<&str>, claims: impl Iterator<Item = &'r Arc<CompiledRule>>) -> Option<Overlap> {
        let in_force = self.rules.find(model)?;
        let mut shadowed: Vec<String> =
            claims.filter(|rule| !Arc::ptr_eq(rule, in_force)).map(|rule| rule.source().to_string()).collect();
        shadowed.dedup();
        (!shadowed.is_empty()).then(|| Overlap {
            model: model.map(str::to_owned),
            active: in_force.source().to_string(),
            shadowed,
        })
    }
}
