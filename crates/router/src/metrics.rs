//! Prometheus metrics of the router.
//!
//! Cardinality is bounded: only names that occur in rules have their own series; everything else is `other`, or a
//! reason from a fixed list. A series is created at its first use and outlives its rule, so that a change of weights
//! resets nothing. Unused series are evicted once they outnumber the used ones.

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

/// The `model_name` of requests that a generic rule matched, because clients choose those names freely.
const OTHER_MODEL: &str = "other";

/// Bucket bounds for the time to the response headers, in seconds: from a cached response to a long prompt on a full
/// server.
const LATENCY_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Unused series below this number are not evicted.
const MIN_UNUSED_SERIES: usize = 1000;

/// Values of the label `code`; the last one is for requests without a response.
const STATUS_CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];

/// Why a request was forwarded without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnroutedReason {
    NoRule,
    NoBody,
    NotJson,
    /// The body is compressed or multipart, or the proxy cannot read it.
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

/// The metric families; clones share them.
#[derive(Debug, Clone)]
struct MetricFamilies {
    decisions: Family<DecisionLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    response_seconds: Family<TargetLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<TargetLabels, Gauge>,
    unrouted: Family<ReasonLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
}

/// The metrics of one router.
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
            "Requests that a rule routed to a target",
            families.decisions,
        );
        let registry = registry.sub_registry_with_prefix("rollora_router");
        registry.register(
            "requests",
            "Requests routed to a target, by status class of the response",
            families.responses,
        );
        registry.register(
            "response_headers_seconds",
            "Time from the request headers to the response headers, in seconds",
            families.response_seconds,
        );
        registry.register("requests_in_flight", "Requests routed to a target that have not ended", families.in_flight);
        registry.register("unrouted_requests", "Requests forwarded without a rule, by reason", families.unrouted);
        registry.register("refused_requests", "Requests refused by the router, by reason", families.refused);
    }

    pub(crate) fn count_unrouted(&self, reason: UnroutedReason) {
        self.families.unrouted.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    pub(crate) fn count_refused(&self, reason: &'static str) {
        self.families.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Begins a change of rules, which creates the series that rules hold.
    pub(crate) fn begin_update<'a>(&'a self, usages: &'a mut UsageUpdate) -> MetricsUpdate<'a> {
        MetricsUpdate { metrics: self, usages }
    }

    /// Ends a change of rules: evicts unused series if there are many.
    pub(crate) fn evict_unused(&self) {
        self.series_cache().evict_unused(&self.families);
    }

    fn series_cache(&self) -> std::sync::MutexGuard<'_, SeriesCache> {
        // The cache is consistent between any two statements, so a panic of another holder does not matter.
        self.series_cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Access to series while rules are compiled.
#[derive(Debug)]
pub(crate) struct MetricsUpdate<'a> {
    metrics: &'a RouterMetrics,
    usages: &'a mut UsageUpdate,
}

impl MetricsUpdate<'_> {
    /// Returns the series of a target of a rule. `rewrite` is namespace and name of the rewrite, `name` only its name;
    /// `model` is `None` for a generic rule.
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
        let mut series_cache = self.metrics.series_cache();
        let usages = &mut *self.usages;
        series_cache.get_or_create(decision, labels, &self.metrics.families, || usages.get_or_insert(target))
    }
}

/// Metrics of one target of one rule. Each series is created at its first use.
#[derive(Debug)]
pub(crate) struct RuleTargetMetrics {
    families: MetricFamilies,
    labels: DecisionLabels,
    decisions: OnceLock<Counter>,
    target_metrics: Arc<TargetMetrics>,
}

impl RuleTargetMetrics {
    /// Counts a request that the rule routed to the target.
    pub(crate) fn count_decision(&self) {
        self.decisions.get_or_init(|| self.families.decisions.get_or_create_owned(&self.labels)).inc();
    }

    pub(crate) fn target_metrics(&self) -> &Arc<TargetMetrics> {
        &self.target_metrics
    }
}

/// Metrics of one target under one rewrite, for all its rules.
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
    /// Records the start of a request to the target.
    pub(crate) fn start_request(&self, now: Timestamp) {
        self.in_flight().inc();
        self.usage.start_request(now);
    }

    /// Records response headers that arrived `seconds` after those of the request.
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

    /// Records the end of a request; `responded` tells whether it got response headers.
    pub(crate) fn end_request(&self, responded: bool) {
        self.in_flight().dec();
        self.usage.end_request();
        if !responded {
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
