//! The edit of an InferenceModelRewrite.
//!
//! Only the rule that matches the model exactly, the stamp and two annotations change, and the pool if another writer
//! changed it. Every other rule and field stays as it was read.

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

/// The weight that a single target is written with; any number means all traffic there.
const SINGLE_TARGET_WEIGHT: i32 = 100;

/// The desired content of the rewrite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DesiredRewrite<'a> {
    /// The name of the rewrite object.
    pub(crate) name: &'a str,
    /// The API group of a rewrite that is created.
    pub(crate) group: RewriteGroup,
    /// The namespace of the Rollout; `None` with `rollora local`.
    pub(crate) namespace: Option<&'a str>,
    /// The model name that clients send.
    pub(crate) model: &'a ModelName,
    /// The InferencePool that the rule applies to.
    pub(crate) pool: &'a PoolRef,
    /// The UID of the Rollout, part of the name of its stamp.
    pub(crate) rollout_uid: &'a str,
    /// The targets with their weights, and the sequence to stamp.
    pub(crate) weights: &'a TrafficWeights,
    /// The target that is stable, recorded for an adoption of the rewrite.
    pub(crate) stable: Option<&'a AdapterId>,
    /// The request header that keeps a client on one target; `None` if there is none.
    pub(crate) sticky_header: Option<&'a str>,
}

/// Finds the rewrite of this name. If both API groups have one, the one of `recorded_group` wins, which is the group
/// that the Rollout uses already, else the one of the current group.
pub(crate) fn find<'a>(
    name: &str,
    recorded_group: Option<RewriteGroup>,
    rewrites: &'a [impl Borrow<InferenceModelRewrite>],
) -> Option<&'a InferenceModelRewrite> {
    rewrites
        .iter()
        .map(Borrow::borrow)
        .filter(|rewrite: &&InferenceModelRewrite| {
            rewrite.metadata.name == name && rewrite.metadata.deletion_timestamp.is_none()
        })
        .min_by_key(|rewrite| (recorded_group.is_some() && rewrite.group() != recorded_group, rewrite.group()))
}

/// Returns the rule that matches the model exactly.
pub(crate) fn rule_for<'a>(model: &ModelName, rewrite: &'a InferenceModelRewrite) -> Option<&'a RewriteRule> {
    rewrite.spec.rules.iter().find(|rule| rule.matches.iter().any(|candidate| is_exact(candidate, model)))
}

fn is_exact(candidate: &RewriteMatch, model: &ModelName) -> bool {
    candidate.model.value == model.as_str() && candidate.model.type_.as_deref().is_none_or(|kind| kind == "Exact")
}

/// Returns the sequence that the Rollout last stamped on the rewrite; `None` if it never did.
pub(crate) fn stamped_sequence(rewrite: &InferenceModelRewrite, rollout_uid: &str) -> Option<Sequence> {
    rewrite.metadata.annotations.get(&sequence_annotation(rollout_uid))?.parse().ok().map(Sequence)
}

/// Returns whether the rewrite has the desired weights, stamp and pool.
pub(crate) fn is_written(rewrite: &InferenceModelRewrite, desired: DesiredRewrite<'_>) -> bool {
    stamped_sequence(rewrite, desired.rollout_uid) == Some(desired.weights.sequence)
        && rewrite.spec.pool_ref.name == desired.pool.name
        && rule_for(desired.model, rewrite).is_some_and(|rule| is_exclusive(rule) && has_targets(rule, desired))
}

fn is_exclusive(rule: &RewriteRule) -> bool {
    rule.matches.len() == 1
}

fn has_targets(rule: &RewriteRule, desired: DesiredRewrite<'_>) -> bool {
    same_targets(&rule.targets, &desired.weights.desired)
}

/// Returns the rewrite as it should be; `None` if it is so already.
pub(crate) fn updated(
    current: Option<&InferenceModelRewrite>,
    desired: DesiredRewrite<'_>,
) -> Option<InferenceModelRewrite> {
    let mut rewrite = current.cloned().unwrap_or_else(|| new_rewrite(desired));
    if rewrite.spec.pool_ref.name != desired.pool.name {
        rewrite.spec.pool_ref = desired.pool.clone();
    }
    annotate_stable(&mut rewrite, desired);
    set_rule(&mut rewrite.spec.rules, desired);
    set_annotation(
        &mut rewrite.metadata,
        &sequence_annotation(desired.rollout_uid),
        Some(&desired.weights.sequence.to_string()),
    );
    // A sticky header of another Rollout that shares the rewrite stays: otherwise the two would overwrite each other
    // forever.
    if !is_shared(&rewrite, desired) || !rewrite.metadata.annotations.contains_key(STICKY_HEADER_ANNOTATION) {
        set_annotation(&mut rewrite.metadata, STICKY_HEADER_ANNOTATION, desired.sticky_header);
    }
    (current != Some(&rewrite)).then_some(rewrite)
}

/// Records the stable target if there are two. A single target is stable in any case, and without the annotation a
/// success changes nothing in the rewrite. Stable ids of other Rollouts that share the rewrite stay.
fn annotate_stable(rewrite: &mut InferenceModelRewrite, desired: DesiredRewrite<'_>) {
    let rule = rule_for(desired.model, rewrite);
    let before = rule.into_iter().flat_map(|rule| &rule.targets).map(|target| target.model_rewrite.as_str());
    let ours: Vec<&str> = before.chain(desired.weights.desired.iter().map(|target| target.id.as_str())).collect();
    let annotated = rewrite.metadata.annotations.get(STABLE_ANNOTATION).filter(|_| is_shared(rewrite, desired));
    let others = annotated.into_iter().flat_map(|annotated| stable_ids(annotated)).filter(|id| !ours.contains(id));
    let stable = desired.stable.filter(|_| desired.weights.desired.len() > 1);
    // Sorted, so that all Rollouts that share the rewrite write the same text.
    let all: BTreeSet<&str> = others.chain(stable.map(AdapterId::as_str)).collect();
    let text = all.into_iter().collect::<Vec<_>>().join(",");
    set_annotation(&mut rewrite.metadata, STABLE_ANNOTATION, (!text.is_empty()).then_some(text.as_str()));
}

/// Parses the ids of [`STABLE_ANNOTATION`], which are separated by commas.
pub(crate) fn stable_ids(annotation: &str) -> impl Iterator<Item = &str> {
    annotation.split(',').map(str::trim).filter(|id| !id.is_empty())
}

/// Returns whether another Rollout has stamped the rewrite too.
fn is_shared(rewrite: &InferenceModelRewrite, desired: DesiredRewrite<'_>) -> bool {
    let ours = sequence_annotation(desired.rollout_uid);
    rewrite.metadata.annotations.keys().any(|name| name.starts_with(SEQUENCE_ANNOTATION_PREFIX) && *name != ours)
}

fn new_rewrite(desired: DesiredRewrite<'_>) -> InferenceModelRewrite {
    InferenceModelRewrite {
        api_version: desired.group.api_version().to_owned(),
        kind: "InferenceModelRewrite".to_owned(),
        metadata: ObjectMeta { namespace: desired.namespace.map(str::to_owned), ..ObjectMeta::named(desired.name) },
        spec: RewriteSpec { pool_ref: desired.pool.clone(), ..RewriteSpec::default() },
        status: None,
    }
}

fn set_annotation(metadata: &mut ObjectMeta, name: &str, value: Option<&str>) {
    match value {
        Some(value) => metadata.annotations.insert(name.to_owned(), value.to_owned()),
        None => metadata.annotations.remove(name),
    };
}

fn set_rule(rules: &mut Vec<RewriteRule>, desired: DesiredRewrite<'_>) {
    let found = rules.iter().position(|rule| rule.matches.iter().any(|candidate| is_exact(candidate, desired.model)));
    let index = match found {
        Some(index) if is_exclusive(&rules[index]) => index,
        // A rule that also matches other names is split: it stays as it is for them.
        Some(index) => {
            let mut ours = rules[index].clone();
            ours.matches = vec![exact_match(desired.model)];
            rules[index].matches.retain(|candidate| !is_exact(candidate, desired.model));
            if rules[index].matches.is_empty() {
                // The rule matched the same name several times. Without a match it would become generic.
                rules[index] = ours;
            } else {
                rules.insert(index, ours);
            }
            index
        }
        None => {
            rules.insert(0, RewriteRule { matches: vec![exact_match(desired.model)], ..RewriteRule::default() });
            0
        }
    };
    let rule = &mut rules[index];
    if !has_targets(rule, desired) {
        rule.targets = merge_targets(&rule.targets, &desired.weights.desired);
    }
}

fn exact_match(model: &ModelName) -> RewriteMatch {
    let model = ModelMatch { type_: Some("Exact".to_owned()), value: model.as_str().to_owned() };
    RewriteMatch { model, ..RewriteMatch::default() }
}

/// Returns targets with weights, in the order of `weights`, each with the unknown fields that it had.
fn merge_targets(current: &[RewriteTarget], weights: &[TargetWeight]) -> Vec<RewriteTarget> {
    let single = weights.len() == 1;
    let target = |weight: &TargetWeight| {
        let id = weight.id.as_str();
        let other = current.iter().find(|old| old.model_rewrite == id).map(|old| old.other.clone());
        RewriteTarget {
            model_rewrite: id.to_owned(),
            weight: Some(if single { SINGLE_TARGET_WEIGHT } else { weight.weight }),
            other: other.unwrap_or_default(),
        }
    };
    weights.iter().map(target).collect()
}
