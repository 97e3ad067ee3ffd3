//! What is counted, as Prometheus reads it.
//!
//! Bounded: only names that stand in rules have series of their own, everything else is `other`, or a reason out
//! of a fixed list. A series begins with its first use and outlives its rule, so that a change of weights resets
//! nothing; when many more have departed than are in force, the departed ones are dropped.

mod series_cache;

use crate::usage::{TargetUsage, UsageUpdate};
use http::StatusCode;
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use series_cache::SeriesCache;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The `model_name` of requests that a generic rule matched: clients choose those names.
const OTHER_MODEL: &str = "other";

/// Upper bounds of the seconds to the response headers: from a cached answer to a long prompt on a full server.
const LATENCY_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// So many departed series are kept at least.
const MIN_UNUSED_SERIES: usize = 1000;

/// Classes of answers; the last is none at all.
const STATUS_CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];

/// Why a request was passed on without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnroutedReason {
    /// No rule matches its model.
    NoRule,
    /// It has no body.
    NoBody,
    /// Its body is no JSON object.
    NotJson,
    /// Its body is compressed or multipart.
    UnreadableBody,
}

impl UnroutedReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::NoRule => "NoRule",
            Self::NoBody => "NoBody",
            Self::NotJson => "NotJson",
            Self::UnreadableBody => "Unreadable",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    model_rewrite_name: String,
    model_name: String,
    target_model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    rewrite: String,
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    rewrite: String,
    target: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The families of series; clones share them.
#[derive(Debug, Clone)]
struct MetricFamilies {
    decisions: Family<DecisionLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    response_seconds: Family<TargetLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<TargetLabels, Gauge>,
    unrouted: Family<ReasonLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
}

/// All counters of one router.
#[derive(Debug)]
pub(crate) struct RouterMetrics {
    families: MetricFamilies,
    series_cache: Mutex<SeriesCache>,
}

impl RouterMetrics {
    pub(crate) fn new() -> Self {
        let families = MetricFamilies {
            decisions: Family::default(),
            responses: Family::default(),
            response_seconds: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            in_flight: Family::default(),
            unrouted: Family::default(),
            refused: Family::default(),
        };
        Self { families, series_cache: Mutex::default() }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let families = self.families.clone();
        registry.register(
            "inference_extension_model_rewrite_decisions",
            "Requests that a rule sent to a target",
            families.decisions,
        );
        let registry = registry.sub_registry_with_prefix("rollora_router");
        registry.register("requests", "Requests of a target, by the class of their answers", families.responses);
        registry.register("response_headers_seconds", "Seconds to the response headers", families.response_seconds);
        registry.register("requests_in_flight", "Requests of a target that have not ended", families.in_flight);
        registry.register("unrouted_requests", "Requests that were passed on without a rule", families.unrouted);
        registry.register("refused_requests", "Requests that were answered here", families.refused);
    }

    pub(crate) fn count_unrouted(&self, why: UnroutedReason) {
        self.families.unrouted.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
    }

    pub(crate) fn count_refused(&self, reason: &'static str) {
        self.families.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Begins a change of rules: hands out the series that rules hold.
    pub(crate) fn begin_update<'a>(&'a self, usages: &'a mut UsageUpdate) -> MetricsUpdate<'a> {
        MetricsUpdate { metrics: self, usages }
    }

    /// Ends a change of rules: drops what has departed, when that has become much.
    pub(crate) fn evict_unused(&self) {
        self.series_cache().evict_unused(&self.families);
    }

    fn series_cache(&self) -> std::sync::MutexGuard<'_, SeriesCache> {
        // The ledger is whole between any two statements, so a panic of another holder does not matter.
        self.series_cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands out series while rules are compiled.
#[derive(Debug)]
pub(crate) struct MetricsUpdate<'a> {
    metrics: &'a RouterMetrics,
    usages: &'a mut UsageUpdate,
}

impl MetricsUpdate<'_> {
    /// The series of a target of a rule. `rewrite` is namespace and name, `name` the name alone; no model means
    /// a generic rule.
    pub(crate) fn for_target(
        &mut self,
        rewrite: &str,
        name: &str,
        model: Option<&str>,
        target: &Arc<str>,
    ) -> Arc<RuleTargetMetrics> {
        let decision = DecisionLabels {
            model_rewrite_name: name.to_owned(),
            model_name: model.unwrap_or(OTHER_MODEL).to_owned(),
            target_model: target.to_string(),
        };
        let labels = TargetLabels { rewrite: rewrite.to_owned(), target: target.to_string() };
        let mut ledger = self.metrics.series_cache();
        let usages = &mut *self.usages;
        ledger.get_or_create(decision, labels, &self.metrics.families, || usages.get_or_insert(target))
    }
}

/// The series of one target of one rule. Each begins with its first use.
#[derive(Debug)]
pub(crate) struct RuleTargetMetrics {
    families: MetricFamilies,
    labels: DecisionLabels,
    decisions: OnceLock<Counter>,
    target_metrics: Arc<TargetMetrics>,
}

impl RuleTargetMetrics {
    /// A rule sent a request to the target.
    pub(crate) fn count_decision(&self) {
        self.decisions.get_or_init(|| self.families.decisions.get_or_create_owned(&self.labels)).inc();
    }

    pub(crate) fn target_metrics(&self) -> &Arc<TargetMetrics> {
        &self.target_metrics
    }
}

/// What is counted of one target under one rewrite, whichever of its rules sent the request there.
#[derive(Debug)]
pub(crate) struct TargetMetrics {
    families: MetricFamilies,
    labels: TargetLabels,
    responses: [OnceLock<Counter>; STATUS_CLASSES.len()],
    response_seconds: OnceLock<Histogram>,
    in_flight: OnceLock<Gauge>,
    pub(crate) usage: Arc<TargetUsage>,
}

impl TargetMetrics {
    /// A request goes to the target.
    pub(crate) fn start_request(&self, now: Timestamp) {
        self.in_flight().inc();
        self.usage.start_request(now);
    }

    /// The response headers came, `seconds` after the request's.
    pub(crate) fn record_response(&self, status: StatusCode, seconds: f64) {
        self.count_response(match status.as_u16() {
            300..400 => 1,
            400..500 => 2,
            500.. => 3,
            _ => 0,
        });
        self.response_seconds
            .get_or_init(|| self.families.response_seconds.get_or_create_owned(&self.labels))
            .observe(seconds);
    }

    /// The request has ended, with response headers or without.
    pub(crate) fn end_request(&self, answered: bool) {
        self.in_flight().dec();
        self.usage.end_request();
        if !answered {
            self.count_response(STATUS_CLASSES.len() - 1);
        }
    }

    fn in_flight(&self) -> &Gauge {
        self.in_flight.get_or_init(|| self.families.in_flight.get_or_create_owned(&self.labels))
    }

    fn count_response(&self, class: usize) {
        if let (Some(counter), Some(code)) = (self.responses.get(class), STATUS_CLASSES.get(class)) {
            counter.get_or_init(|| self.families.responses.get_or_create_owned(&self.labels.with_code(code))).inc();
        }
    }
}

impl TargetLabels {
    fn with_code(&self, code: &'static str) -> ResponseLabels {
        ResponseLabels { rewrite: self.rewrite.clone(), target: self.target.clone(), code }
    }
}
