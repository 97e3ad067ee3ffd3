//! Rewrites and active rules for unit tests.

use crate::{active_rules::ActiveRules, rules::RuleSet};
use arc_swap::Guard;
use jiff::Timestamp;
use rollora_api::{
    metadata::ObjectMeta,
    names::{STICKY_HEADER_ANNOTATION, sequence_annotation},
    rewrite::{
        InferenceModelRewrite, ModelMatch, PoolRef, RewriteGroup, RewriteMatch, RewriteRule, RewriteSpec, RewriteTarget,
    },
};
use std::sync::Arc;

pub(crate) fn pool() -> PoolRef {
    PoolRef { name: "pool".to_owned(), ..PoolRef::default() }
}

/// Returns a fixed time plus `second` seconds.
pub(crate) fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A rewrite of the pool in the current group, created at second 0, with its name as its UID.
pub(crate) fn rewrite(name: &str, rules: Vec<RewriteRule>) -> InferenceModelRewrite {
    InferenceModelRewrite {
        api_version: RewriteGroup::Current.api_version().to_owned(),
        kind: "InferenceModelRewrite".to_owned(),
        metadata: ObjectMeta {
            uid: Some(name.to_owned()),
            namespace: Some("ns".to_owned()),
            creation_timestamp: Some(timestamp(0)),
            ..ObjectMeta::named(name)
        },
        spec: RewriteSpec { pool_ref: pool(), rules, ..RewriteSpec::default() },
        status: None,
    }
}

pub(crate) fn as_legacy(mut rewrite: InferenceModelRewrite) -> InferenceModelRewrite {
    rewrite.api_version = RewriteGroup::Legacy.api_version().to_owned();
    rewrite
}

pub(crate) fn created_at(second: i64, mut rewrite: InferenceModelRewrite) -> InferenceModelRewrite {
    rewrite.metadata.creation_timestamp = Some(timestamp(second));
    rewrite
}

pub(crate) fn with_sticky_header(header: &str, mut rewrite: InferenceModelRewrite) -> InferenceModelRewrite {
    rewrite.metadata.annotations.insert(STICKY_HEADER_ANNOTATION.to_owned(), header.to_owned());
    rewrite
}

pub(crate) fn with_sequence(rollout: &str, sequence: i64, mut rewrite: InferenceModelRewrite) -> InferenceModelRewrite {
    rewrite.metadata.annotations.insert(sequence_annotation(rollout), sequence.to_string());
    rewrite
}

/// A rule for `models` (generic if empty) with these targets; a weight of 0 is left unset.
pub(crate) fn rule(models: &[&str], targets: &[(&str, i32)]) -> RewriteRule {
    let matches = models.iter().map(|model| RewriteMatch {
        model: ModelMatch { type_: None, value: (*model).to_owned() },
        ..RewriteMatch::default()
    });
    let targets = targets.iter().map(|(name, weight)| RewriteTarget {
        model_rewrite: (*name).to_owned(),
        weight: (*weight != 0).then_some(*weight),
        ..RewriteTarget::default()
    });
    RewriteRule { matches: matches.collect(), targets: targets.collect(), ..RewriteRule::default() }
}

pub(crate) fn active_rules(rewrites: &[InferenceModelRewrite]) -> Arc<ActiveRules> {
    let active_rules = ActiveRules::new(pool(), &[RewriteGroup::Current, RewriteGroup::Legacy]);
    active_rules.reset(rewrites);
    Arc::new(active_rules)
}

pub(crate) fn rule_set(rewrites: &[InferenceModelRewrite]) -> Guard<Arc<RuleSet>> {
    active_rules(rewrites).rules()
}
