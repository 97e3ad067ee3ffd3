//! A filter in observability mode: it waits for nothing and is told nothing, so what it sees is only counted.
//!
//! It stands before the rewriting filter. Responses pass the filters in reverse, so it sees the response as the
//! rewriting one has left it: [`TARGET_HEADER`] says whose answer it is, and no request body has to be read again.
//!
//! Bounded: targets that are in no rule, and have not been lately, are counted together.

mod tokens;

use super::{Rules, status};
use crate::protocol::{Event, HeaderMap, HttpHeaders};
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rollora_router::headers::{Headers, TARGET_HEADER};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokens::Tokens;

/// Targets that have figures of their own.
const MOST_TARGETS: usize = 2_000;
/// What no rule chose, or somebody beyond [`MOST_TARGETS`].
const OTHER: &str = "other";

/// Upper bounds of the seconds to the end of an answer.
const SECONDS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Target {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    target: String,
    end: &'static str,
}

/// What all observing filters have seen; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    in_flight: Family<Target, Gauge>,
    answers: Family<Ended, Counter>,
    seconds: Family<Target, Histogram, fn() -> Histogram>,
    bytes: Family<Target, Counter>,
    prompt_tokens: Family<Target, Counter>,
    completion_tokens: Family<Target, Counter>,
    targets: Arc<Mutex<BTreeSet<String>>>,
}

impl Figures {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let figures = Self {
            in_flight: Family::default(),
            answers: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            bytes: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            targets: Arc::default(),
        };
        let registry = registry.sub_registry_with_prefix("rollora_observed");
        registry.register("answers_in_flight", "Answers that have begun and not ended", figures.in_flight.clone());
        registry.register("answers", "Answers that have ended: whole, or cut off", figures.answers.clone());
        registry.register("seconds", "Seconds from the request's headers to the answer's end", figures.seconds.clone());
        registry.register("answer_bytes", "Bytes of answers", figures.bytes.clone());
        registry.register("prompt_tokens", "Tokens of prompts, as answers say", figures.prompt_tokens.clone());
        registry.register("completion_tokens", "Tokens of answers, as they say", figures.completion_tokens.clone());
        figures
    }

    /// The name under which a target is counted.
    fn label(&self, rules: &Rules, target: Option<&[u8]>) -> Target {
        let known = target.and_then(|name| str::from_utf8(name).ok()).filter(|name| {
            // Nothing panics while it is held.
            let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.contains(*name)
                || (targets.len() < MOST_TARGETS && rules.in_force.is_known(name) && targets.insert((*name).to_owned()))
        });
        Target { target: known.unwrap_or(OTHER).to_owned() }
    }
}

/// One request, as it was seen.
#[derive(Debug)]
pub(super) struct Observer {
    began: Timestamp,
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Answer {
    figures: Figures,
    of: Target,
    bytes: Counter,
    tokens: Tokens,
    is_whole: bool,
}

impl Observer {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { began: now, answer: None }
    }

    pub(super) fn take(&mut self, event: &Event, rules: &Rules, now: Timestamp) {
        let ends = match event {
            Event::RequestHeaders(_) => {
                self.began = now;
                false
            }
            Event::ResponseHeaders(message) => {
                self.response_headers(message, rules);
                message.end_of_stream
            }
            Event::ResponseBody(piece) => {
                if let Some(answer) = &mut self.answer {
                    answer.bytes.inc_by(piece.body.len() as u64);
                    answer.tokens.read(&piece.body);
                }
                piece.end_of_stream
            }
            Event::ResponseTrailers(_) => true,
            Event::RequestBody(_) | Event::RequestTrailers(_) => false,
        };
        if ends && let Some(mut answer) = self.answer.take() {
            answer.is_whole = true;
            answer.end(self.began, now);
        }
    }

    fn response_headers(&mut self, message: &HttpHeaders, rules: &Rules) {
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        if status(headers).is_informational() || self.answer.is_some() {
            return;
        }
        let figures = rules.figures.clone();
        let of = figures.label(rules, headers.first(TARGET_HEADER));
        figures.in_flight.get_or_create(&of).inc();
        let bytes = figures.bytes.get_or_create_owned(&of);
        self.answer = Some(Answer { figures, of, bytes, tokens: Tokens::default(), is_whole: false });
    }

    /// The stream has ended, the answer maybe not.
    pub(super) fn end(self, now: Timestamp) {
        if let Some(answer) = self.answer {
            answer.end(self.began, now);
        }
    }
}

impl Answer {
    fn end(self, began: Timestamp, now: Timestamp) {
        let Self { figures, of, tokens, is_whole, .. } = self;
        figures.in_flight.get_or_create(&of).dec();
        let seconds = now.duration_since(began).as_secs_f64().max(0.0);
        figures.seconds.get_or_create(&of).observe(seconds);
        for (family, count) in
            [(&figures.prompt_tokens, tokens.prompt()), (&figures.completion_tokens, tokens.completion())]
        {
            if let Some(count) = count {
                family.get_or_create(&of).inc_by(count);
            }
        }
        let end = if is_whole { "whole" } else { "cut" };
        figures.answers.get_or_create(&Ended { target: of.target, end }).inc();
    }
}
