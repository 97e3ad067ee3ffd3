//! The recorded exchanges, parsed from `testdata/vllm`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A request and vLLM's response.
#[derive(Debug, Deserialize)]
pub(crate) struct RecordedExchange {
    pub(crate) label: String,
    pub(crate) request: RecordedRequest,
    /// `None` if there was no response; then `response` has the reason.
    pub(crate) status: Option<u16>,
    pub(crate) content_type: Option<String>,
    pub(crate) response: Option<String>,
    #[serde(flatten)]
    pub(crate) stream: Option<StreamSummary>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RecordedRequest {
    pub(crate) method: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

/// What was recorded of a stream: its first three events, its last four, and the number of lines.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamSummary {
    pub(crate) response_first: String,
    pub(crate) response_last: String,
    pub(crate) n_lines: usize,
}

impl RecordedRequest {
    /// Returns the request body as it was sent.
    pub(crate) fn body_bytes(&self) -> Vec<u8> {
        match &self.body {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            object => object.to_string().into_bytes(),
        }
    }

    /// Returns a string field of the body.
    pub(crate) fn body_field(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }
}

/// Loads the long session; the index is the line number minus one.
pub(crate) fn load_transcript() -> Vec<RecordedExchange> {
    parse_exchanges(include_str!("../../testdata/vllm/transcript.jsonl"))
}

/// Loads the recording of unusual requests.
pub(crate) fn load_edges() -> Vec<RecordedExchange> {
    parse_exchanges(include_str!("../../testdata/vllm/edges.jsonl"))
}

fn parse_exchanges(lines: &str) -> Vec<RecordedExchange> {
    lines.lines().map(|line| serde_json::from_str(line).expect("each line is an exchange")).collect()
}
