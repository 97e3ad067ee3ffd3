//! Settings that can be changed while a simulator runs: delays, failures, crashes, hangs.
//!
//! The flags of `vllm-sim` set their initial values; `PATCH /sim/knobs` and
//! [`Simulator::update_knobs`](super::Simulator::update_knobs) change them. vLLM has none of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Settings that can be changed at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// Duration of an adapter's load, in milliseconds.
    pub load_millis: u64,
    /// Duration of generating a token, in milliseconds.
    pub token_millis: u64,
    /// Adapters whose load fails, by name.
    pub fail_load: BTreeMap<String, LoadFault>,
    /// Adapters whose load crashes the server, by name.
    pub deadly_load: BTreeMap<String, CrashMode>,
    /// Adapters whose first use crashes the server, by name.
    pub deadly_use: BTreeMap<String, CrashMode>,
    /// Whether and how the server responds.
    pub mode: ServingMode,
    /// API key that requests to `/v1/*` must carry; `None` if no key is needed.
    pub api_key: Option<String>,
}

impl Knobs {
    /// Returns these knobs with the fields of `patch` replaced; an error if a field or value is unknown.
    pub fn patched(&self, patch: Map<String, Value>) -> Result<Self, serde_json::Error> {
        let mut fields = serde_json::to_value(self)?;
        if let Value::Object(fields) = &mut fields {
            fields.extend(patch);
        }
        serde_json::from_value(fields)
    }

    pub(super) fn load_time(&self) -> Duration {
        Duration::from_millis(self.load_millis)
    }

    pub(super) fn token_time(&self) -> Duration {
        Duration::from_millis(self.token_millis)
    }
}

/// Whether and how a server responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServingMode {
    /// Responds to all requests.
    #[default]
    Serving,
    /// Loads and completions hang, other requests are answered: how vLLM behaves while a load waits for a hub.
    EngineHangs,
    /// Connections are accepted, but only `/sim` responds. Pending requests are answered when the mode changes.
    Hangs,
    /// As after SIGTERM with `--shutdown-timeout`: healthy, but a new completion is rejected with status 500.
    Draining,
}

/// How a named adapter crashes its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashMode {
    /// The engine fails: requests in flight get status 500, or an error event in their streams, then the process ends
    /// (as recorded).
    #[default]
    Engine,
    /// All connections are closed immediately, without responses, as after `kill -9` or an out-of-memory kill.
    Cut,
}

impl FromStr for CrashMode {
    type Err = InvalidKnobValue;

    fn from_str(text: &str) -> Result<Self, InvalidKnobValue> {
        match text {
            "engine" => Ok(Self::Engine),
            "cut" => Ok(Self::Cut),
            other => Err(InvalidKnobValue { given: other.to_owned(), known: "engine, cut" }),
        }
    }
}

/// Recorded error with which the load of a named adapter fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum LoadFault {
    /// Status 404: no adapter at that source.
    NotFound,
    /// Status 500: the weights are not in the safetensors format.
    BadWeights,
    /// Status 500: the rank is twice what the server allows.
    Rank,
    /// Status 500: the engine's worker failed with this text.
    Worker(String),
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not-found"),
            Self::BadWeights => f.write_str("bad-weights"),
            Self::Rank => f.write_str("rank"),
            Self::Worker(text) => write!(f, "500:{text}"),
        }
    }
}

impl FromStr for LoadFault {
    type Err = InvalidKnobValue;

    fn from_str(text: &str) -> Result<Self, InvalidKnobValue> {
        match text.split_once(':').unwrap_or((text, "simulated failure")) {
            ("not-found", _) => Ok(Self::NotFound),
            ("bad-weights", _) => Ok(Self::BadWeights),
            ("rank", _) => Ok(Self::Rank),
            ("500", worker) => Ok(Self::Worker(worker.to_owned())),
            _ => Err(InvalidKnobValue { given: text.to_owned(), known: "not-found, bad-weights, rank, 500, 500:TEXT" }),
        }
    }
}

impl TryFrom<String> for LoadFault {
    type Error = InvalidKnobValue;

    fn try_from(text: String) -> Result<Self, InvalidKnobValue> {
        text.parse()
    }
}

impl From<LoadFault> for String {
    fn from(fault: LoadFault) -> Self {
        fault.to_string()
    }
}

/// A value that the knob does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not one of {known}")]
pub struct InvalidKnobValue {
    given: String,
    known: &'static str,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patch_changes_only_the_given_fields() {
        let knobs = Knobs { load_millis: 5, token_millis: 7, ..Knobs::default() };
        let Value::Object(patch) =
            json!({"load_millis": 9, "mode": "engine-hangs", "fail_load": {"a": "rank"}, "deadly_use": {"b": "cut"}})
        else {
            unreachable!("the literal is an object")
        };
        let patched = knobs.patched(patch).expect("a valid patch");
        assert_eq!(
            patched,
            Knobs {
                load_millis: 9,
                token_millis: 7,
                mode: ServingMode::EngineHangs,
                fail_load: [("a".to_owned(), LoadFault::Rank)].into(),
                deadly_use: [("b".to_owned(), CrashMode::Cut)].into(),
                ..Knobs::default()
            }
        );
    }

    #[test]
    fn patch_with_unknown_field_or_value_is_rejected() {
        for patch in [json!({"load_milis": 9}), json!({"mode": "sleepy"}), json!({"fail_load": {"a": "moody"}})] {
            let Value::Object(patch) = patch else { unreachable!("the literal is an object") };
            assert!(Knobs::default().patched(patch).is_err());
        }
    }

    #[test]
    fn load_faults_round_trip_through_text() {
        for text in ["not-found", "bad-weights", "rank", "500:out of memory"] {
            assert_eq!(text.parse::<LoadFault>().expect("a known fault").to_string(), text);
        }
        assert_eq!("500".parse::<LoadFault>(), Ok(LoadFault::Worker("simulated failure".to_owned())));
        assert!("unlucky".parse::<LoadFault>().is_err());
    }
}
