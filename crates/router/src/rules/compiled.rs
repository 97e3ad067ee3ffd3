//! One rule, made ready for requests: everything that does not depend on the request is worked out here.

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

/// One rule for one model, or for all.
#[derive(Debug)]
pub struct CompiledRule {
    source: Arc<RewriteSource>,
    index: usize,
    model: Option<Arc<str>>,
    /// As written, for the report.
    spec_targets: Vec<RewriteTarget>,
    targets: Vec<Arc<RuleTarget>>,
}

/// What the rules of one rewrite share.
#[derive(Debug)]
pub(crate) struct RewriteSource {
    rank: RewritePrecedence,
    group: RewriteGroup,
    uid: String,
    sequences: BTreeMap<String, i64>,
    sticky_header: Option<Arc<str>>,
}

/// Group, namespace and name.
impl fmt::Display for RewriteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.group.name(), self.rank)
    }
}

/// A target that can be chosen.
#[derive(Debug)]
pub struct RuleTarget {
    name: Arc<str>,
    weight: u64,
    /// The weights of the targets up to and with this one.
    pub(crate) cumulative_weight: u64,
    /// What rendezvous hashing mixes with the client's value.
    pub(crate) seed: u64,
    pub(crate) encoded_name: EncodedName,
    pub(crate) header_value: HeaderValue,
    pub(crate) metrics: Arc<RuleTargetMetrics>,
}

impl CompiledRule {
    /// The model that is matched exactly; none for a generic rule.
    pub fn model(&self) -> Option<&Arc<str>> {
        self.model.as_ref()
    }

    /// The targets that can be chosen: those with a weight, each name once.
    pub fn targets(&self) -> &[Arc<RuleTarget>] {
        &self.targets
    }

    /// The request header whose value keeps a client on one target, in lower case.
    pub fn sticky_header(&self) -> Option<&Arc<str>> {
        self.source.sticky_header.as_ref()
    }

    /// Namespace and name of the rewrite.
    pub fn rewrite(&self) -> String {
        self.source.rank.to_string()
    }

    /// The rule as `/rules` reports it.
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

    /// Orders the rules of a group by precedence.
    pub(super) fn rank(&self) -> (&RewritePrecedence, usize) {
        (&self.source.rank, self.index)
    }
}

impl RuleTarget {
    /// The name that `model` becomes.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The target's part of the sum of all weights.
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

/// The rules of `rewrite`, one for every model that one of them matches.
pub(super) fn compile(
    key: &RewriteKey,
    rewrite: &InferenceModelRewrite,
    series: &mut MetricsUpdate<'_>,
) -> Vec<Arc<CompiledRule>> {
    let object = Arc::new(rewrite_source(key, rewrite));
    let mut rules = Vec::new();
    for (index, rule) in rewrite.spec.rules.iter().enumerate() {
        for model in rule.models() {
            let model: Option<Arc<str>> = model.map(Arc::from);
            let targets = compile_targets(&object, &rule.targets, model.as_deref(), series);
            let object = Arc::clone(&object);
            rules.push(Arc::new(CompiledRule {
                source: object,
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
    let stamps = metadata.annotations.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?.to_owned(), value.parse().ok()?))
    });
    let sticky_header = metadata.annotations.get(STICKY_HEADER_ANNOTATION);
    RewriteSource {
        rank: RewritePrecedence::of(rewrite),
        group: key.group,
        uid: metadata.uid.clone().unwrap_or_default(),
        sequences: stamps.collect(),
        sticky_header: sticky_header
            .and_then(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .map(|name| Arc::from(name.as_str())),
    }
}

/// The targets that can be chosen. As upstream weighs them: without any weight all are equal, beside a weight
/// those without one get nothing. A name that stands twice gets both weights.
fn compile_targets(
    object: &RewriteSource,
    written: &[RewriteTarget],
    model: Option<&str>,
    series: &mut MetricsUpdate<'_>,
) -> Vec<Arc<RuleTarget>> {
    let weight = |target: &RewriteTarget| target.weight.and_then(|weight| u64::try_from(weight).ok()).unwrap_or(0);
    let all_equal = written.iter().all(|target| weight(target) == 0);
    let mut targets: Vec<RuleTarget> = Vec::with_capacity(written.len());
    for target in written {
        let weight = if all_equal { 1 } else { weight(target) };
        if let Some(same) = targets.iter_mut().find(|other| *other.name == *target.model_rewrite) {
            same.weight += weight;
        } else if weight > 0 {
            let name: Arc<str> = Arc::from(target.model_rewrite.as_str());
            targets.push(RuleTarget {
                seed: sticky::target_seed(&object.uid, &name),
                encoded_name: EncodedName::new(&name),
                header_value: headers::encode_header_value(&name),
                metrics: series.for_target(&object.rank.to_string(), object.rank.name(), model, &name),
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
