//! A filter in observability mode: it waits for nothing and is told nothing, so what it sees is only counted.
//!
//! It stands before the rewriting filter. Responses pass the filters in reverse, so it sees the response as the
//! rewriting one has left it: [`TARGET_HEADER`] says whose answer it is, and no request body has to be read again.
//!
//! Bounded: targets that are in no rule, and have not been lately, are counted together.

mod token_usage;

use super::{ProcessorShared, response_status};
use crate::proto::{HeaderMap, HttpHeaders, ProcessingEvent};
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

/// Targets that have figures of their own.
const MAX_TARGETS: usize = 2_000;
/// What no rule chose, or somebody beyond [`MOST_TARGETS`].
const OTHER: &str = "other";

/// Upper bounds of the seconds to the end of an answer.
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

/// What all observing filters have seen; clones share it.
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
        let figures = Self {
            in_flight: Family::default(),
            responses: Family::default(),
            duration_seconds: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            response_bytes: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            targets: Arc::default(),
        };
        let registry = registry.sub_registry_with_prefix("rollora_observed");
        registry.register("answers_in_flight", "Answers that have begun and not ended", figures.in_flight.clone());
        registry.register("answers", "Answers that have ended: whole, or cut off", figures.responses.clone());
        registry.register(
            "seconds",
            "Seconds from the request's headers to the answer's end",
            figures.duration_seconds.clone(),
        );
        registry.register("answer_bytes", "Bytes of answers", figures.response_bytes.clone());
        registry.register("prompt_tokens", "Tokens of prompts, as answers say", figures.prompt_tokens.clone());
        registry.register("completion_tokens", "Tokens of answers, as they say", figures.completion_tokens.clone());
        figures
    }

    /// The name under which a target is counted.
    fn label(&self, rules: &ProcessorShared, target: Option<&[u8]>) -> TargetLabel {
        let known = target.and_then(|name| str::from_utf8(name).ok()).filter(|name| {
            // Nothing panics while it is held.
            let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.contains(*name)
                || (targets.len() < MAX_TARGETS
                    && rules.active_rules.is_known(name)
                    && targets.insert((*name).to_owned()))
        });
        TargetLabel { target: known.unwrap_or(OTHER).to_owned() }
    }
}

/// One request, as it was seen.
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

    pub(super) fn observe(&mut self, event: &ProcessingEvent, rules: &ProcessorShared, now: Timestamp) {
        let ends = match event {
            ProcessingEvent::RequestHeaders(_) => {
                self.started_at = now;
                false
            }
            ProcessingEvent::ResponseHeaders(message) => {
                self.response_headers(message, rules);
                message.end_of_stream
            }
            ProcessingEvent::ResponseBody(piece) => {
                if let Some(answer) = &mut self.response {
                    answer.bytes.inc_by(piece.body.len() as u64);
                    answer.tokens.read(&piece.body);
                }
                piece.end_of_stream
            }
            ProcessingEvent::ResponseTrailers(_) => true,
            ProcessingEvent::RequestBody(_) | ProcessingEvent::RequestTrailers(_) => false,
        };
        if ends && let Some(mut answer) = self.response.take() {
            answer.complete = true;
            answer.end(self.started_at, now);
        }
    }

    fn response_headers(&mut self, message: &HttpHeaders, rules: &ProcessorShared) {
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        if response_status(headers).is_informational() || self.response.is_some() {
            return;
        }
        let figures = rules.observed.clone();
        let of = figures.label(rules, headers.first(TARGET_HEADER));
        figures.in_flight.get_or_create(&of).inc();
        let bytes = figures.response_bytes.get_or_create_owned(&of);
        self.response = Some(ObservedResponse {
            metrics: figures,
            label: of,
            bytes,
            tokens: TokenUsage::default(),
            complete: false,
        });
    }

    /// The stream has ended, the answer maybe not.
    pub(super) fn end(self, now: Timestamp) {
        if let Some(answer) = self.response {
            answer.end(self.started_at, now);
        }
    }
}

impl ObservedResponse {
    fn end(self, began: Timestamp, now: Timestamp) {
        let Self { metrics: figures, label: of, tokens, complete: is_whole, .. } = self;
        figures.in_flight.get_or_create(&of).dec();
        let seconds = now.duration_since(began).as_secs_f64().max(0.0);
        figures.duration_seconds.get_or_create(&of).observe(seconds);
        for (family, count) in
            [(&figures.prompt_tokens, tokens.prompt()), (&figures.completion_tokens, tokens.completion())]
        {
            if let Some(count) = count {
                family.get_or_create(&of).inc_by(count);
            }
        }
        let end = if is_whole { "whole" } else { "cut" };
        figures.responses.get_or_create(&ResponseEndLabels { target: of.target, end }).inc();
    }
}
