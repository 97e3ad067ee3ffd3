//! What can be turned while a simulator runs: speed, failures, deaths, hangs.
//!
//! The flags of `vllm-sim` set them at the start, `PATCH /sim/knobs` and [`Simulator::turn`](super::Simulator::turn)
//! later. None of them exists in vLLM.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Everything that can be turned at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// How long the load of an adapter takes.
    pub load_millis: u64,
    /// How long a generated token takes.
    pub token_millis: u64,
    /// Adapters, by name, whose load fails, and how.
    pub fail_load: BTreeMap<String, LoadFault>,
    /// Adapters, by name, whose load ends the server.
    pub deadly_load: BTreeMap<String, CrashMode>,
    /// Adapters, by name, whose first use ends the server.
    pub deadly_use: BTreeMap<String, CrashMode>,
    /// Whether the server answers.
    pub mode: ServingMode,
    /// The key that `/v1/*` asks for.
    pub api_key: Option<String>,
}

impl Knobs {
    /// These knobs with the fields of `patch` in place of their own.
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

/// Whether and how a server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServingMode {
    /// It does.
    #[default]
    Serving,
    /// Loads and generation get no answer, everything else does: how vLLM behaves while a load waits for a hub.
    EngineHangs,
    /// Connections are accepted, nothing is answered (but `/sim`). What waits is answered when the mode changes.
    Hangs,
    /// As after SIGTERM with `--shutdown-timeout`: healthy, but a new completion is refused with status 500.
    Draining,
}

/// How a named adapter makes its server end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashMode {
    /// The engine fails: requests in flight are answered with status 500, or with an error event in their streams, then
    /// the process ends (as recorded).
    #[default]
    Engine,
    /// Everything is cut at once, nothing is answered: what `kill -9` or the kernel's memory killer does.
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

/// The recorded error that the load of a named adapter ends with.
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

/// A word that is none of a knob's.
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
    fn a_patch_changes_the_fields_that_it_names() {
        let knobs = Knobs { load_millis: 5, token_millis: 7, ..Knobs::default() };
        let Value::Object(patch) =
            json!({"load_millis": 9, "mode": "engine-hangs", "fail_load": {"a": "rank"}, "deadly_use": {"b": "cut"}})
        else {
            unreachable!("written as an object")
        };
        let patched = knobs.patched(patch).expect("a good patch");
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
    fn a_patch_with_an_unknown_field_or_word_is_refused() {
        for patch in [json!({"load_milis": 9}), json!({"mode": "sleepy"}), json!({"fail_load": {"a": "moody"}})] {
            let Value::Object(patch) = patch else { unreachable!("written as an object") };
            assert!(Knobs::default().patched(patch).is_err());
        }
    }

    #[test]
    fn load_faults_are_written_as_they_are_read() {
        for text in ["not-found", "bad-weights", "rank", "500:out of memory"] {
            assert_eq!(text.parse::<LoadFault>().expect("a known fault").to_string(), text);
        }
        assert_eq!("500".parse::<LoadFault>(), Ok(LoadFault::Worker("simulated failure".to_owned())));
        assert!("unlucky".parse::<LoadFault>().is_err());
    }
}
