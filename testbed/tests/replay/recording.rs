//! The recorded exchanges.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One request and what vLLM answered.
#[derive(Debug, Deserialize)]
pub(crate) struct RecordedExchange {
    pub(crate) label: String,
    pub(crate) request: RecordedRequest,
    /// None when there was no answer; then `response` says why.
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

/// What is kept of a stream: its first three events, its last four, how many lines it had.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamSummary {
    pub(crate) response_first: String,
    pub(crate) response_last: String,
    pub(crate) n_lines: usize,
}

impl RecordedRequest {
    /// The bytes that were sent.
    pub(crate) fn body_bytes(&self) -> Vec<u8> {
        match &self.body {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            object => object.to_string().into_bytes(),
        }
    }

    /// A text field of the body.
    pub(crate) fn body_field(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }
}

/// The long session; the place in the vector is the line number less one.
pub(crate) fn load_transcript() -> Vec<RecordedExchange> {
    parse_exchanges(include_str!("../../testdata/vllm/transcript.jsonl"))
}

/// The odd requests.
pub(crate) fn load_edges() -> Vec<RecordedExchange> {
    parse_exchanges(include_str!("../../testdata/vllm/edges.jsonl"))
}

fn parse_exchanges(lines: &str) -> Vec<RecordedExchange> {
    lines.lines().map(|line| serde_json::from_str(line).expect("a line is an exchange")).collect()
}
