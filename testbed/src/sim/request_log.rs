//! Request counters by model, and the most recent requests.
//!
//! Scenarios use them to prove that no client request reached an adapter. A request is counted when it arrives, before
//! it hangs, fails or crashes the server; the log gets an entry when the response begins.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Maximum number of model names with counters of their own; others are counted under [`OVERFLOW_MODEL`].
const MAX_MODELS: usize = 1000;

/// Maximum number of requests in the log.
const MAX_LOG_ENTRIES: usize = 4096;

/// Name under which models after the first 1000 are counted.
pub const OVERFLOW_MODEL: &str = "(others)";

/// Counts of the completions of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCounters {
    /// Completions that arrived, including streams.
    pub completions: u64,
    /// Completions with at most one token, such as the sidecar's verification of a load.
    pub single_token: u64,
    /// Completions that requested a stream.
    pub streams: u64,
    /// Completions that were rejected, because the model does not exist or the engine has failed.
    pub refused: u64,
    /// Arrival of the first completion.
    pub first: Timestamp,
    /// Arrival of the last completion.
    pub last: Timestamp,
}

impl ModelCounters {
    /// Returns the number of completions with more than one token, which no sidecar sends.
    pub fn multi_token(&self) -> u64 {
        self.completions - self.single_token
    }
}

/// Request counters of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounters {
    /// Completions by requested model name, whether the model exists or not.
    pub models: BTreeMap<String, ModelCounters>,
    /// Loads that arrived, by adapter.
    pub loads: BTreeMap<String, u64>,
    /// Unloads that arrived, by adapter.
    pub unloads: BTreeMap<String, u64>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When the response began.
    pub at: Timestamp,
    /// HTTP method of the request.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Status code of the response.
    pub status: u16,
    /// Model or adapter of the request; `None` if the request is about neither.
    pub model: Option<String>,
    /// Value of the header `x-request-id`.
    pub request_id: Option<String>,
}

/// The counters and the log of one server.
#[derive(Debug, Default)]
pub(super) struct RequestLog {
    pub(super) counters: RequestCounters,
    pub(super) log: VecDeque<LogEntry>,
}

impl RequestLog {
    /// Counts a completion when it arrives.
    pub(super) fn record_completion(&mut self, model: &str, single_token: bool, stream: bool, now: Timestamp) {
        let counters = self.model_counters(model, now);
        counters.completions += 1;
        counters.single_token += u64::from(single_token);
        counters.streams += u64::from(stream);
        counters.last = now;
    }

    /// Counts a completion that is rejected after it was counted as arrived.
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
        let mut request_log = RequestLog::default();
        request_log.record_completion("a", true, false, early);
        request_log.record_completion("a", false, true, late);
        request_log.record_refused("a", late);
        let counters = &request_log.counters.models["a"];
        let expected =
            ModelCounters { completions: 2, single_token: 1, streams: 1, refused: 1, first: early, last: late };
        assert_eq!(*counters, expected);
        assert_eq!(counters.multi_token(), 1);
    }

    #[test]
    fn number_of_names_and_log_entries_is_bounded() {
        let now = Timestamp::UNIX_EPOCH;
        let mut request_log = RequestLog::default();
        for index in 0..MAX_LOG_ENTRIES + 5 {
            request_log.record_completion(&format!("m{index}"), false, false, now);
            let (method, path) = ("GET".to_owned(), format!("/{index}"));
            request_log.record_response(LogEntry { at: now, method, path, status: 200, model: None, request_id: None });
        }
        assert_eq!(request_log.counters.models.len(), MAX_MODELS + 1);
        assert_eq!(request_log.log.len(), MAX_LOG_ENTRIES);
        assert_eq!(request_log.log[0].path, "/5");
    }
}
