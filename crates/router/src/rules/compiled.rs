//! One rule, made ready for requests: everything that does not depend on the request is worked out here.

use super::RewriteKey;
use crate::{
    counters::{Series, SeriesEdit},
    headers,
    json::EncodedName,
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
pub struct Rule {
    object: Arc<Object>,
    index: usize,
    model: Option<Arc<str>>,
    /// As written, for the report.
    written: Vec<RewriteTarget>,
    targets: Vec<Arc<Target>>,
}

/// What the rules of one rewrite share.
#[derive(Debug)]
pub(crate) struct Object {
    rank: RewritePrecedence,
    group: RewriteGroup,
    uid: String,
    stamps: BTreeMap<String, i64>,
    sticky_header: Option<Arc<str>>,
}

/// Group, namespace and name.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.group.name(), self.rank)
    }
}

/// A target that can be chosen.
#[derive(Debug)]
pub struct Target {
    name: Arc<str>,
    weight: u64,
    /// The weights of the targets up to and with this one.
    pub(crate) cumulative: u64,
    /// What rendezvous hashing mixes with the client's value.
    pub(crate) seed: u64,
    pub(crate) encoded: EncodedName,
    pub(crate) header: HeaderValue,
    pub(crate) series: Arc<Series>,
}

impl Rule {
    /// The model that is matched exactly; none for a generic rule.
    pub fn model(&self) -> Option<&Arc<str>> {
        self.model.as_ref()
    }

    /// The targets that can be chosen: those with a weight, each name once.
    pub fn targets(&self) -> &[Arc<Target>] {
        &self.targets
    }

    /// The request header whose value keeps a client on one target, in lower case.
    pub fn sticky_header(&self) -> Option<&Arc<str>> {
        self.object.sticky_header.as_ref()
    }

    /// Namespace and name of the rewrite.
    pub fn rewrite(&self) -> String {
        self.object.rank.to_string()
    }

    /// The rule as `/rules` reports it.
    pub fn in_force(&self) -> ActiveRule {
        ActiveRule {
            group: self.object.group.name().to_owned(),
            rewrite: self.rewrite(),
            uid: self.object.uid.clone(),
            stamps: self.object.stamps.clone(),
            targets: self.written.clone(),
        }
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    /// Orders the rules of a group by precedence.
    pub(super) fn rank(&self) -> (&RewritePrecedence, usize) {
        (&self.object.rank, self.index)
    }
}

impl Target {
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
    series: &mut SeriesEdit<'_>,
) -> Vec<Arc<Rule>> {
    let object = Arc::new(object(key, rewrite));
    let mut rules = Vec::new();
    for (index, rule) in rewrite.spec.rules.iter().enumerate() {
        for model in rule.models() {
            let model: Option<Arc<str>> = model.map(Arc::from);
            let targets = targets(&object, &rule.targets, model.as_deref(), series);
            let object = Arc::clone(&object);
            rules.push(Arc::new(Rule { object, index, model, written: rule.targets.clone(), targets }));
        }
    }
    rules
}

fn object(key: &RewriteKey, rewrite: &InferenceModelRewrite) -> Object {
    let metadata = &rewrite.metadata;
    let stamps = metadata.annotations.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix(SEQUENCE_ANNOTATION_PREFIX)?.to_owned(), value.parse().ok()?))
    });
    let sticky_header = metadata.annotations.get(STICKY_HEADER_ANNOTATION);
    Object {
        rank: RewritePrecedence::of(rewrite),
        group: key.group,
        uid: metadata.uid.clone().unwrap_or_default(),
        stamps: stamps.collect(),
        sticky_header: sticky_header
            .and_then(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .map(|name| Arc::from(name.as_str())),
    }
}

/// The targets that can be chosen. As upstream weighs them: without any weight all are equal, beside a weight
/// those without one get nothing. A name that stands twice gets both weights.
fn targets(
    object: &Object,
    written: &[RewriteTarget],
    model: Option<&str>,
    series: &mut SeriesEdit<'_>,
) -> Vec<Arc<Target>> {
    let weight = |target: &RewriteTarget| target.weight.and_then(|weight| u64::try_from(weight).ok()).unwrap_or(0);
    let all_equal = written.iter().all(|target| weight(target) == 0);
    let mut targets: Vec<Target> = Vec::with_capacity(written.len());
    for target in written {
        let weight = if all_equal { 1 } else { weight(target) };
        if let Some(same) = targets.iter_mut().find(|other| *other.name == *target.model_rewrite) {
            same.weight += weight;
        } else if weight > 0 {
            let name: Arc<str> = Arc::from(target.model_rewrite.as_str());
            targets.push(Target {
                seed: sticky::seed(&object.uid, &name),
                encoded: EncodedName::new(&name),
                header: headers::value_of(&name),
                series: series.of(&object.rank.to_string(), object.rank.name(), model, &name),
                name,
                weight,
                cumulative: 0,
            });
        }
    }
    let mut sum = 0;
    for target in &mut targets {
        sum += target.weight;
        target.cumulative = sum;
    }
    targets.into_iter().map(Arc::new).collect()
}
