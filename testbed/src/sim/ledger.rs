//! What a simulator was asked: counters for each model, and the last requests.
//!
//! Scenarios prove with it that no client's request reached an adapter. A request is counted when it arrives, before it
//! hangs, fails or kills; an entry of the log is written when it is answered.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many different model names are counted; more are counted together under [`OTHERS`].
const MOST_MODELS: usize = 1000;

/// How many requests the log remembers.
const MOST_ENTRIES: usize = 4096;

/// The name under which models are counted that come after the first 1000.
pub const OTHERS: &str = "(others)";

/// What one model was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUse {
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

impl ModelUse {
    /// Completions that asked for more than one token: nobody's proof of residency.
    pub fn longer(&self) -> u64 {
        self.completions - self.single_token
    }
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// For each model name that was asked for, whether it exists or not.
    pub models: BTreeMap<String, ModelUse>,
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
pub(super) struct Ledger {
    pub(super) counters: Counters,
    pub(super) log: VecDeque<LogEntry>,
}

impl Ledger {
    /// Counts a completion that arrives.
    pub(super) fn completion(&mut self, model: &str, single_token: bool, stream: bool, now: Timestamp) {
        let counted = self.model(model, now);
        counted.completions += 1;
        counted.single_token += u64::from(single_token);
        counted.streams += u64::from(stream);
        counted.last = now;
    }

    /// Counts a completion that is refused after it arrived.
    pub(super) fn refused(&mut self, model: &str, now: Timestamp) {
        self.model(model, now).refused += 1;
    }

    pub(super) fn load(&mut self, name: &str) {
        count(&mut self.counters.loads, name);
    }

    pub(super) fn unload(&mut self, name: &str) {
        count(&mut self.counters.unloads, name);
    }

    pub(super) fn answered(&mut self, entry: LogEntry) {
        if self.log.len() == MOST_ENTRIES {
            self.log.pop_front();
        }
        self.log.push_back(entry);
    }

    fn model(&mut self, model: &str, now: Timestamp) -> &mut ModelUse {
        let models = &mut self.counters.models;
        let name = bounded(models, model);
        models.entry(name).or_insert(ModelUse {
            completions: 0,
            single_token: 0,
            streams: 0,
            refused: 0,
            first: now,
            last: now,
        })
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    *counts.entry(bounded(counts, name)).or_default() += 1;
}

fn bounded<T>(counts: &BTreeMap<String, T>, name: &str) -> String {
    if counts.len() < MOST_MODELS || counts.contains_key(name) { name.to_owned() } else { OTHERS.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_counted_by_model_and_kind() {
        let [early, late] = [1, 2].map(|second| Timestamp::from_second(second).expect("in range"));
        let mut ledger = Ledger::default();
        ledger.completion("a", true, false, early);
        ledger.completion("a", false, true, late);
        ledger.refused("a", late);
        let counted = &ledger.counters.models["a"];
        let expected = ModelUse { completions: 2, single_token: 1, streams: 1, refused: 1, first: early, last: late };
        assert_eq!(*counted, expected);
        assert_eq!(counted.longer(), 1);
    }

    #[test]
    fn names_and_log_are_bounded() {
        let now = Timestamp::UNIX_EPOCH;
        let mut ledger = Ledger::default();
        for index in 0..MOST_ENTRIES + 5 {
            ledger.completion(&format!("m{index}"), false, false, now);
            let (method, path) = ("GET".to_owned(), format!("/{index}"));
            ledger.answered(LogEntry { at: now, method, path, status: 200, model: None, request_id: None });
        }
        assert_eq!(ledger.counters.models.len(), MOST_MODELS + 1);
        assert_eq!(ledger.log.len(), MOST_ENTRIES);
        assert_eq!(ledger.log[0].path, "/5");
    }
}
