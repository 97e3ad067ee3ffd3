//! What a simulator was asked: counters for each model, and the last requests.
//!
//! Scenarios prove with it that no client's request reached an adapter. A request is counted when it arrives, before it
//! hangs, fails or kills; an entry of the log is written when it is answered.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many different model names are counted; more are counted together under [`OTHERS`].
const MAX_MODELS: usize = 1000;

/// How many requests the log remembers.
const MAX_LOG_ENTRIES: usize = 4096;

/// The name under which models are counted that come after the first 1000.
pub const OVERFLOW_MODEL: &str = "(others)";

/// What one model was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCounters {
    /// Completions that arrived, streams among them.
    pub completions: u64,
    /// Those of them that asked for at most one token, as a proof of residency does.
    pub single_token: u64,
    /// Those of them that asked for a stream.
    pub streams: u64,
    /// Those of them that were refused, because there is no such model here or the engine had failed.
    pub refused: u64,
    /// When the first arrived.
    pub first: Timestamp,
    /// When the last arrived.
    pub last: Timestamp,
}

impl ModelCounters {
    /// Completions that asked for more than one token: nobody's proof of residency.
    pub fn multi_token(&self) -> u64 {
        self.completions - self.single_token
    }
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounters {
    /// For each model name that was asked for, whether it exists or not.
    pub models: BTreeMap<String, ModelCounters>,
    /// Loads that arrived, for each adapter.
    pub loads: BTreeMap<String, u64>,
    /// Unloads that arrived, for each adapter.
    pub unloads: BTreeMap<String, u64>,
}

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When the answer began.
    pub at: Timestamp,
    /// The request's method.
    pub method: String,
    /// The request's path.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// The model or adapter that it was about.
    pub model: Option<String>,
    /// The request's `x-request-id`.
    pub request_id: Option<String>,
}

/// Counters and log.
#[derive(Debug, Default)]
pub(super) struct RequestLog {
    pub(super) counters: RequestCounters,
    pub(super) log: VecDeque<LogEntry>,
}

impl RequestLog {
    /// Counts a completion that arrives.
    pub(super) fn record_completion(&mut self, model: &str, single_token: bool, stream: bool, now: Timestamp) {
        let counted = self.model_counters(model, now);
        counted.completions += 1;
        counted.single_token += u64::from(single_token);
        counted.streams += u64::from(stream);
        counted.last = now;
    }

    /// Counts a completion that is refused after it arrived.
    pub(super) fn record_refused(&mut self, model: &str, now: Timestamp) {
        self.model_counters(model, now).refused += 1;
    }

    pub(super) fn record_load(&mut self, name: &str) {
        increment(&mut self.counters.loads, name);
    }

    pub(super) fn record_unload(&mut self, name: &str) {
        increment(&mut self.counters.unloads, name);
    }

    pub(super) fn record_response(&mut self, entry: LogEntry) {
        if self.log.len() == MAX_LOG_ENTRIES {
            self.log.pop_front();
        }
        self.log.push_back(entry);
    }

    fn model_counters(&mut self, model: &str, now: Timestamp) -> &mut ModelCounters {
        let models = &mut self.counters.models;
        let name = bounded_name(models, model);
        models.entry(name).or_insert(ModelCounters {
            completions: 0,
            single_token: 0,
            streams: 0,
            refused: 0,
            first: now,
            last: now,
        })
    }
}

fn increment(counts: &mut BTreeMap<String, u64>, name: &str) {
    *counts.entry(bounded_name(counts, name)).or_default() += 1;
}

fn bounded_name<T>(counts: &BTreeMap<String, T>, name: &str) -> String {
    if counts.len() < MAX_MODELS || counts.contains_key(name) { name.to_owned() } else { OVERFLOW_MODEL.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_counted_by_model_and_kind() {
        let [early, late] = [1, 2].map(|second| Timestamp::from_second(second).expect("in range"));
        let mut ledger = RequestLog::default();
        ledger.record_completion("a", true, false, early);
        ledger.record_completion("a", false, true, late);
        ledger.record_refused("a", late);
        let counted = &ledger.counters.models["a"];
        let expected =
            ModelCounters { completions: 2, single_token: 1, streams: 1, refused: 1, first: early, last: late };
        assert_eq!(*counted, expected);
        assert_eq!(counted.multi_token(), 1);
    }

    #[test]
    fn names_and_log_are_bounded() {
        let now = Timestamp::UNIX_EPOCH;
        let mut ledger = RequestLog::default();
        for index in 0..MAX_LOG_ENTRIES + 5 {
            ledger.record_completion(&format!("m{index}"), false, false, now);
            let (method, path) = ("GET".to_owned(), format!("/{index}"));
            ledger.record_response(LogEntry { at: now, method, path, status: 200, model: None, request_id: None });
        }
        assert_eq!(ledger.counters.models.len(), MAX_MODELS + 1);
        assert_eq!(ledger.log.len(), MAX_LOG_ENTRIES);
        assert_eq!(ledger.log[0].path, "/5");
    }
}
