//! Metrics of a filter in observability mode, which gets no replies.
//!
//! The filter is placed before the rewriting filter. Responses pass the filters in reverse order, so it sees the
//! response after the rewriting filter has processed it: [`TARGET_HEADER`] contains the target, and no request body
//! needs to be read again.
//!
//! Cardinality is bounded: targets that are in no rule, and were not recently, share one label.

mod token_usage;

use super::{ProcessorShared, response_status};
use crate::proto;
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rollora_router::headers::{HeaderLookup, TARGET_HEADER};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use token_usage::TokenUsage;

/// Maximum number of targets with their own series.
const MAX_TARGETS: usize = 2_000;
/// Label for responses without a target, for unknown targets, and for those beyond [`MAX_TARGETS`].
const OTHER: &str = "other";

/// Bucket bounds for the time to the end of a response, in seconds.
const DURATION_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabel {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseEndLabels {
    target: String,
    end: &'static str,
}

/// Metrics of all observing filters; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct ObservedMetrics {
    in_flight: Family<TargetLabel, Gauge>,
    responses: Family<ResponseEndLabels, Counter>,
    duration_seconds: Family<TargetLabel, Histogram, fn() -> Histogram>,
    response_bytes: Family<TargetLabel, Counter>,
    prompt_tokens: Family<TargetLabel, Counter>,
    completion_tokens: Family<TargetLabel, Counter>,
    targets: Arc<Mutex<BTreeSet<String>>>,
}

impl ObservedMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            in_flight: Family::default(),
            responses: Family::default(),
            duration_seconds: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            response_bytes: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            targets: Arc::default(),
        };
        let registry = registry.sub_registry_with_prefix("rollora_observed");
        registry.register("responses_in_flight", "Responses that have not ended", metrics.in_flight.clone());
        registry.register(
            "responses",
            "Responses that have ended, complete (whole) or not (cut)",
            metrics.responses.clone(),
        );
        registry.register(
            "seconds",
            "Time from the request headers to the end of the response, in seconds",
            metrics.duration_seconds.clone(),
        );
        registry.register("response_bytes", "Size of response bodies, in bytes", metrics.response_bytes.clone());
        registry.register("prompt_tokens", "Prompt tokens, as reported in responses", metrics.prompt_tokens.clone());
        registry.register(
            "completion_tokens",
            "Completion tokens, as reported in responses",
            metrics.completion_tokens.clone(),
        );
        metrics
    }

    /// Returns the label for a target.
    fn label(&self, shared: &ProcessorShared, target: Option<&[u8]>) -> TargetLabel {
        let known = target.and_then(|name| str::from_utf8(name).ok()).filter(|name| {
            // No code panics while it holds this lock.
            let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.contains(*name)
                || (targets.len() < MAX_TARGETS
                    && shared.active_rules.is_known(name)
                    && targets.insert((*name).to_owned()))
        });
        TargetLabel { target: known.unwrap_or(OTHER).to_owned() }
    }
}

/// Observation of one request.
#[derive(Debug)]
pub(super) struct StreamObserver {
    started_at: Timestamp,
    response: Option<ObservedResponse>,
}

#[derive(Debug)]
struct ObservedResponse {
    metrics: ObservedMetrics,
    label: TargetLabel,
    bytes: Counter,
    tokens: TokenUsage,
    complete: bool,
}

impl StreamObserver {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { started_at: now, response: None }
    }

    pub(super) fn observe(&mut self, event: &proto::ProcessingEvent, shared: &ProcessorShared, now: Timestamp) {
        let ends = match event {
            proto::ProcessingEvent::RequestHeaders(_) => {
                self.started_at = now;
                false
            }
            proto::ProcessingEvent::ResponseHeaders(message) => {
                self.response_headers(message, shared);
                message.end_of_stream
            }
            proto::ProcessingEvent::ResponseBody(chunk) => {
                if let Some(response) = &mut self.response {
                    response.bytes.inc_by(chunk.body.len() as u64);
                    response.tokens.read(&chunk.body);
                }
                chunk.end_of_stream
            }
            proto::ProcessingEvent::ResponseTrailers(_) => true,
            proto::ProcessingEvent::RequestBody(_) | proto::ProcessingEvent::RequestTrailers(_) => false,
        };
        if ends && let Some(mut response) = self.response.take() {
            response.complete = true;
            response.end(self.started_at, now);
        }
    }

    fn response_headers(&mut self, message: &proto::HttpHeaders, shared: &ProcessorShared) {
        let none = proto::HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        if response_status(headers).is_informational() || self.response.is_some() {
            return;
        }
        let metrics = shared.observed.clone();
        let label = metrics.label(shared, headers.first(TARGET_HEADER));
        metrics.in_flight.get_or_create(&label).inc();
        let bytes = metrics.response_bytes.get_or_create_owned(&label);
        self.response =
            Some(ObservedResponse { metrics, label, bytes, tokens: TokenUsage::default(), complete: false });
    }

    /// Ends the stream; counts the response as incomplete if it has not ended.
    pub(super) fn end(self, now: Timestamp) {
        if let Some(response) = self.response {
            response.end(self.started_at, now);
        }
    }
}

impl ObservedResponse {
    fn end(self, started_at: Timestamp, now: Timestamp) {
        let Self { metrics, label, tokens, complete, .. } = self;
        metrics.in_flight.get_or_create(&label).dec();
        let seconds = now.duration_since(started_at).as_secs_f64().max(0.0);
        metrics.duration_seconds.get_or_create(&label).observe(seconds);
        for (family, count) in
            [(&metrics.prompt_tokens, tokens.prompt()), (&metrics.completion_tokens, tokens.completion())]
        {
            if let Some(count) = count {
                family.get_or_create(&label).inc_by(count);
            }
        }
        let end = if complete { "whole" } else { "cut" };
        metrics.responses.get_or_create(&ResponseEndLabels { target: label.target, end }).inc();
    }
}
