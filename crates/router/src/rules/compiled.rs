//! Compiled rules: everything that does not depend on the request is computed once.

use super::RewriteKey;
use crate::{
    headers,
    json::EncodedName,
    metrics::{MetricsUpdate, RuleTargetMetrics},
    route::sticky,
};
use http::{HeaderName, HeaderValue};
use rollora_api::{
    names::{SEQUENCE_ANNOTATION_PREFIX, STICKY_HEADER_ANNOTATION},
    rewrite::{InferenceModelRewrite, RewriteGroup, RewritePrecedence, RewriteTarget},
    router_report::ActiveRule,
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// One rule for one model, or for all models.
#[derive(Debug)]
pub struct CompiledRule {
    source: Arc<RewriteSource>,
    index: usize,
    model: Option<Arc<str>>,
    /// The targets as written in the rewrite, for the report.
    spec_targets: Vec<RewriteTarget>,
    targets: Vec<Arc<RuleTarget>>,
}

/// Properties that the rules of one rewrite share.
#[derive(Debug)]
pub(crate) struct RewriteSource {
    rank: RewritePrecedence,
    group: RewriteGroup,
    uid: String,
    sequences: BTreeMap<String, i64>,
    sticky_header: Option<Arc<str>>,
}

/// Formats group, namespace and name.
impl fmt::Display for RewriteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.group.name(), self.rank)
    }
}

/// A target that can be selected.
#[derive(Debug)]
pub struct RuleTarget {
    name: Arc<str>,
    weight: u64,
    /// Sum of the weights up to and including this target.
    pub(crate) cumulative_weight: u64,
    /// Seed for rendezvous hashing, mixed with the sticky key.
    pub(crate) seed: u64,
    pub(crate) encoded_name: EncodedName,
    pub(crate) header_value: HeaderValue,
    pub(crate) metrics: Arc<RuleTargetMetrics>,
}

impl CompiledRule {
    /// Returns the model that the rule matches exactly. `None` for a generic rule.
    pub fn model(&self) -> Option<&Arc<str>> {
        self.model.as_ref()
    }

    /// Returns the targets that can be selected: those with a weight, each name once.
    pub fn targets(&self) -> &[Arc<RuleTarget>] {
        &self.targets
    }

    /// Returns the sticky header, whose value keeps a client on one target, in lower case.
    pub fn sticky_header(&self) -> Option<&Arc<str>> {
        self.source.sticky_header.as_ref()
    }

    /// Returns namespace and name of the rewrite.
    pub fn rewrite(&self) -> String {
        self.source.rank.to_string()
    }

    /// Returns the rule as `/rules` reports it.
    pub fn report(&self) -> ActiveRule {
        ActiveRule {
            group: self.source.group.name().to_owned(),
            rewrite: self.rewrite(),
            uid: self.source.uid.clone(),
            stamps: self.source.sequences.clone(),
            targets: self.spec_targets.clone(),
        }
    }

    pub(crate) fn source(&self) -> &RewriteSource {
        &self.source
    }

    /// Returns the sort key by which rules of a group are ordered; lower precedes.
    pub(super) fn rank(&self) -> (&RewritePrecedence, usize) {
        (&self.source.rank, self.index)
    }
}

impl RuleTarget {
    /// Returns the model name that replaces `model`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the weight, relative to the sum of the weights of the rule's targets.
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

/// Compiles the rules of `rewrite`, one for every model that one of them matches.
pub(super) fn compile(
    key: &RewriteKey,
    rewrite: &InferenceModelRewrite,
    metrics: &mut MetricsUpdate<'_>,
) -> Vec<Arc<CompiledRule>> {
    let source = Arc::new(rewrite_source(key, rewrite));
    let mut rules = Vec::new();
    for (index, rule) in rewrite.spec.rules.iter().enumerate() {
        for model in rule.models() {
            let model: Option<Arc<str>> = model.map(Arc::from);
            let targets = compile_targets(&source, &rule.targets, model.as_deref(), metrics);
            rules.push(Arc::new(CompiledRule {
                source: Arc::clone(&source),
                index,
                model,
                spec_targets: rule.targets.clone(),
                targets,
            }));
        }
    }
    rules
}

fn rewrite_source(key: &RewriteKey, rewrite: &InferenceModelRewrite) -> RewriteSource {
    let metadata = &rewrite.metadata;
    let sequences = metadata.annotations.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?.to_owned(), value.parse().ok()?))
    });
    let sticky_header = metadata.annotations.get(STICKY_HEADER_ANNOTATION);
    RewriteSource {
        rank: RewritePrecedence::of(rewrite),
        group: key.group,
        uid: metadata.uid.clone().unwrap_or_default(),
        sequences: sequences.collect(),
        sticky_header: sticky_header
            .and_then(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .map(|name| Arc::from(name.as_str())),
    }
}

/// Compiles the targets that can be selected. Weights follow upstream: if no target has a weight, all are equal;
/// otherwise those without a weight get nothing. A name that occurs twice gets the sum of its weights.
fn compile_targets(
    source: &RewriteSource,
    spec_targets: &[RewriteTarget],
    model: Option<&str>,
    metrics: &mut MetricsUpdate<'_>,
) -> Vec<Arc<RuleTarget>> {
    let weight = |target: &RewriteTarget| target.weight.and_then(|weight| u64::try_from(weight).ok()).unwrap_or(0);
    let all_equal = spec_targets.iter().all(|target| weight(target) == 0);
    let mut targets: Vec<RuleTarget> = Vec::with_capacity(spec_targets.len());
    for target in spec_targets {
        let weight = if all_equal { 1 } else { weight(target) };
        if let Some(same) = targets.iter_mut().find(|other| *other.name == *target.model_rewrite) {
            same.weight += weight;
        } else if weight > 0 {
            let name: Arc<str> = Arc::from(target.model_rewrite.as_str());
            targets.push(RuleTarget {
                seed: sticky::target_seed(&source.uid, &name),
                encoded_name: EncodedName::new(&name),
                header_value: headers::encode_header_value(&name),
                metrics: metrics.for_target(&source.rank.to_string(), source.rank.name(), model, &name),
                name,
                weight,
                cumulative_weight: 0,
            });
        }
    }
    let mut sum = 0;
    for target in &mut targets {
        sum += target.weight;
        target.cumulative_weight = sum;
    }
    targets.into_iter().map(Arc::new).collect()
}
