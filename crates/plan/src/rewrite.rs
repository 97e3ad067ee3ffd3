//! The edit of an InferenceModelRewrite: only the rule that matches the model exactly, its stamp and two annotations
//! change, and the pool where somebody changed it; every other rule and field stays as it was read.

#[cfg(test)]
mod tests;

use crate::routers::same_targets;
use rollora_api::{
    metadata::ObjectMeta,
    names::AdapterId,
    names::{
        ModelName, SEQUENCE_ANNOTATION_PREFIX, STABLE_ANNOTATION, STICKY_HEADER_ANNOTATION, Sequence,
        sequence_annotation,
    },
    rewrite::{
        InferenceModelRewrite, ModelMatch, PoolRef, RewriteGroup, RewriteMatch, RewriteRule, RewriteSpec, RewriteTarget,
    },
    rollout::status::{TargetWeight, TrafficWeights},
};
use std::{borrow::Borrow, collections::BTreeSet};

/// What a single target is written with; any number means everything there.
const SINGLE_TARGET_WEIGHT: i32 = 100;

/// What the rewrite should say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DesiredRewrite<'a> {
    /// The rewrite's name.
    pub(crate) name: &'a str,
    /// The group of a rewrite that has to be made.
    pub(crate) group: RewriteGroup,
    /// The Rollout's namespace.
    pub(crate) namespace: Option<&'a str>,
    /// The name that clients send.
    pub(crate) model: &'a ModelName,
    /// The pool.
    pub(crate) pool: &'a PoolRef,
    /// The Rollout that stamps.
    pub(crate) rollout_uid: &'a str,
    /// The targets and their sequence.
    pub(crate) weights: &'a TrafficWeights,
    /// Which target is stable, for whoever has to adopt the rewrite.
    pub(crate) stable: Option<&'a AdapterId>,
    /// The request header that keeps a client on one target.
    pub(crate) sticky_header: Option<&'a str>,
}

/// The rewrite of this name. Where both groups have one: that of the group which the Rollout works with already, else of
/// the current one.
pub(crate) fn find<'a>(
    name: &str,
    kept: Option<RewriteGroup>,
    rewrites: &'a [impl Borrow<InferenceModelRewrite>],
) -> Option<&'a InferenceModelRewrite> {
    rewrites
        .iter()
        .map(Borrow::borrow)
        .filter(|rewrite: &&InferenceModelRewrite| {
            rewrite.metadata.name == name && rewrite.metadata.deletion_timestamp.is_none()
        })
        .min_by_key(|rewrite| (kept.is_some() && rewrite.group() != kept, rewrite.group()))
}

/// The rule that matches the model exactly.
pub(crate) fn rule_for<'a>(model: &ModelName, rewrite: &'a InferenceModelRewrite) -> Option<&'a RewriteRule> {
    rewrite.spec.rules.iter().find(|rule| rule.matches.iter().any(|candidate| is_exact(candidate, model)))
}

fn is_exact(candidate: &RewriteMatch, model: &ModelName) -> bool {
    candidate.model.value == model.as_str() && candidate.model.type_.as_deref().is_none_or(|kind| kind == "Exact")
}

/// The sequence that the Rollout last stamped on the rewrite.
pub(crate) fn stamped_sequence(rewrite: &InferenceModelRewrite, rollout_uid: &str) -> Option<Sequence> {
    rewrite.metadata.annotations.get(&sequence_annotation(rollout_uid))?.parse().ok().map(Sequence)
}

/// Whether the rewrite carries these weights and their stamp, for this pool.
pub(crate) fn is_written(rewrite: &InferenceModelRewrite, wanted: DesiredRewrite<'_>) -> bool {
    stamped_sequence(rewrite, wanted.rollout_uid) == Some(wanted.weights.sequence)
        && rewrite.spec.pool_ref.name == wanted.pool.name
        && rule_for(wanted.model, rewrite).is_some_and(|rule| is_exclusive(rule) && has_targets(rule, wanted))
}

fn is_exclusive(rule: &RewriteRule) -> bool {
    rule.matches.len() == 1
}

fn has_targets(rule: &RewriteRule, wanted: DesiredRewrite<'_>) -> bool {
    same_targets(&rule.targets, &wanted.weights.desired)
}

/// The rewrite as it should be; none where it is so already.
pub(crate) fn updated(
    present: Option<&InferenceModelRewrite>,
    wanted: DesiredRewrite<'_>,
) -> Option<InferenceModelRewrite> {
    let mut rewrite = present.cloned().unwrap_or_else(|| new_rewrite(wanted));
    if rewrite.spec.pool_ref.name != wanted.pool.name {
        rewrite.spec.pool_ref = wanted.pool.clone();
    }
    annotate_stable(&mut rewrite, wanted);
    set_rule(&mut rewrite.spec.rules, wanted);
    set_annotation(
        &mut rewrite.metadata,
        &sequence_annotation(wanted.rollout_uid),
        Some(&wanted.weights.sequence.to_string()),
    );
    // What others that share the rewrite asked for stays: two that take it back from each other would never end.
    if !is_shared(&rewrite, wanted) || !rewrite.metadata.annotations.contains_key(STICKY_HEADER_ANNOTATION) {
        set_annotation(&mut rewrite.metadata, STICKY_HEADER_ANNOTATION, wanted.sticky_header);
    }
    (present != Some(&rewrite)).then_some(rewrite)
}

/// Names the stable side where there are two targets: one needs no word on which is stable, and without it a success
/// changes nothing in the rewrite. Those of other Rollouts that share the rewrite stay beside it.
fn annotate_stable(rewrite: &mut InferenceModelRewrite, wanted: DesiredRewrite<'_>) {
    let rule = rule_for(wanted.model, rewrite);
    let before = rule.into_iter().flat_map(|rule| &rule.targets).map(|target| target.model_rewrite.as_str());
    let ours: Vec<&str> = before.chain(wanted.weights.desired.iter().map(|target| target.id.as_str())).collect();
    let named = rewrite.metadata.annotations.get(STABLE_ANNOTATION).filter(|_| is_shared(rewrite, wanted));
    let others = named.into_iter().flat_map(|named| stable_ids(named)).filter(|id| !ours.contains(id));
    let stable = wanted.stable.filter(|_| wanted.weights.desired.len() > 1);
    // A set, so that everybody who shares it writes the same.
    let all: BTreeSet<&str> = others.chain(stable.map(AdapterId::as_str)).collect();
    let text = all.into_iter().collect::<Vec<_>>().join(",");
    set_annotation(&mut rewrite.metadata, STABLE_ANNOTATION, (!text.is_empty()).then_some(text.as_str()));
}

/// The ids that [`STABLE_ANNOTATION`] names.
pub(crate) fn stable_ids(annotation: &str) -> impl Iterator<Item = &str> {
    annotation.split(',').map(str::trim).filter(|id| !id.is_empty())
}

/// Whether another Rollout has stamped the rewrite too.
fn is_shared(rewrite: &InferenceModelRewrite, wanted: DesiredRewrite<'_>) -> bool {
    let ours = sequence_annotation(wanted.rollout_uid);
    rewrite.metadata.annotations.keys().any(|name| name.starts_with(SEQUENCE_ANNOTATION_PREFIX) && *name != ours)
}

fn new_rewrite(wanted: DesiredRewrite<'_>) -> InferenceModelRewrite {
    InferenceModelRewrite {
        api_version: wanted.group.api_version().to_owned(),
        kind: "InferenceModelRewrite".to_owned(),
        metadata: ObjectMeta { namespace: wanted.namespace.map(str::to_owned), ..ObjectMeta::named(wanted.name) },
        spec: RewriteSpec { pool_ref: wanted.pool.clone(), ..RewriteSpec::default() },
        status: None,
    }
}

fn set_annotation(metadata: &mut ObjectMeta, name: &str, value: Option<&str>) {
    match value {
        Some(value) => metadata.annotations.insert(name.to_owned(), value.to_owned()),
        None => metadata.annotations.remove(name),
    };
}

fn set_rule(rules: &mut Vec<RewriteRule>, wanted: DesiredRewrite<'_>) {
    let found = rules.iter().position(|rule| rule.matches.iter().any(|candidate| is_exact(candidate, wanted.model)));
    let index = match found {
        Some(index) if is_exclusive(&rules[index]) => index,
        // A rule that matches other names too is split: the others keep it as it is.
        Some(index) => {
            let mut ours = rules[index].clone();
            ours.matches = vec![exact_match(wanted.model)];
            rules[index].matches.retain(|candidate| !is_exact(candidate, wanted.model));
            if rules[index].matches.is_empty() {
                // It matched the same name several times; without a match it would become generic.
                rules[index] = ours;
            } else {
                rules.insert(index, ours);
            }
            index
        }
        None => {
            rules.insert(0, RewriteRule { matches: vec![exact_match(wanted.model)], ..RewriteRule::default() });
            0
        }
    };
    let rule = &mut rules[index];
    if !has_targets(rule, wanted) {
        rule.targets = merge_targets(&rule.targets, &wanted.weights.desired);
    }
}

fn exact_match(model: &ModelName) -> RewriteMatch {
    let model = ModelMatch { type_: Some("Exact".to_owned()), value: model.as_str().to_owned() };
    RewriteMatch { model, ..RewriteMatch::default() }
}

/// Targets with weight, in the order of `weights`, each with the unknown fields that it had.
fn merge_targets(present: &[RewriteTarget], weights: &[TargetWeight]) -> Vec<RewriteTarget> {
    let single = weights.len() == 1;
    let target = |weight: &TargetWeight| {
        let id = weight.id.as_str();
        let other = present.iter().find(|old| old.model_rewrite == id).map(|old| old.other.clone());
        RewriteTarget {
            model_rewrite: id.to_owned(),
            weight: Some(if single { SINGLE_TARGET_WEIGHT } else { weight.weight }),
            other: other.unwrap_or_default(),
        }
    };
    weights.iter().map(target).collect()
}
