//! What vLLM's answers mean. Pure: what was asked, and what came back.
//!
//! Two pairs of answers look alike and mean different things. A 404 of the framework (`{"detail": …}`) says that the
//! server has no such endpoint; a 404 of vLLM itself (`{"error": {…}}`) says that it has no such adapter. And a 500
//! on a load may be the adapter's fault, the server's settings, or a dead engine: only its words tell.

use crate::VllmError;
use rollora_api::names::AdapterId;
use serde_json::Value;
use std::fmt;

/// One question to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'a> {
    /// `GET /health`.
    Health,
    /// `GET /v1/models`.
    Models,
    /// `GET /metrics`.
    Metrics,
    /// `POST /v1/load_lora_adapter`.
    Load {
        /// The id that it gets.
        id: &'a AdapterId,
        /// Where vLLM finds it.
        path: &'a str,
    },
    /// `POST /v1/unload_lora_adapter`.
    Unload {
        /// The adapter.
        id: &'a AdapterId,
    },
    /// A completion of one token by the adapter.
    Probe {
        /// The adapter.
        id: &'a AdapterId,
    },
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health => f.write_str("say whether it is healthy"),
            Self::Models => f.write_str("list its models"),
            Self::Metrics => f.write_str("show its metrics"),
            Self::Load { id, path } => write!(f, "load adapter `{id}` from `{path}`"),
            Self::Unload { id } => write!(f, "unload adapter `{id}`"),
            Self::Probe { id } => write!(f, "complete one token with adapter `{id}`"),
        }
    }
}

/// Whether vLLM did what was asked, and if not, why.
pub fn interpret(call: Call<'_>, status: u16, content_type: Option<&str>, body: &[u8]) -> Result<(), VllmError> {
    if status == 200 {
        // vLLM's own answers are JSON, text without a type, or metrics: a page is from somebody in between.
        return match content_type {
            Some(kind) if kind.starts_with("text/html") => Err(unexpected(call, status, "a web page")),
            _ => Ok(()),
        };
    }
    let refusal = Refusal::read(body);
    match (status, call) {
        (401 | 403, _) => Err(VllmError::Unauthorized),
        (404, Call::Load { .. } | Call::Unload { .. }) if refusal.by_framework => Err(VllmError::RuntimeUpdatingOff),
        (404, Call::Load { id, path }) if refusal.by_vllm => {
            Err(VllmError::AdapterNotFound { id: id.clone(), path: path.to_owned() })
        }
        (404, Call::Unload { id } | Call::Probe { id }) if refusal.by_vllm => {
            Err(VllmError::UnknownAdapter { id: id.clone() })
        }
        (400, Call::Load { id, .. }) if refusal.words.contains("has already been loaded") => {
            Err(VllmError::AlreadyLoaded { id: id.clone() })
        }
        (400, Call::Load { id, .. }) if refusal.words.contains("conflicts with a served base model") => {
            Err(VllmError::NameConflict { id: id.clone() })
        }
        (400 | 500, Call::Load { id, path }) if refusal.worker_failed() => Err(load_failure(id, path, &refusal)),
        (400 | 413 | 415 | 422, _) if refusal.by_vllm => {
            Err(VllmError::Refused { call: call.to_string(), detail: refusal.words })
        }
        (500.., _) => Err(server_failure(call, status, refusal.words)),
        _ => Err(unexpected(call, status, &refusal.words)),
    }
}

/// What the worker, which reads the adapter, had against it.
fn load_failure(id: &AdapterId, path: &str, refusal: &Refusal) -> VllmError {
    let words = refusal.worker_words();
    if words.contains("LoRA is not enabled") {
        return VllmError::LoraOff;
    }
    if let Some((rank, max)) = rank_and_maximum(words) {
        return VllmError::RankTooHigh { id: id.clone(), rank, max };
    }
    VllmError::BadAdapter { id: id.clone(), path: path.to_owned(), detail: shorten(words) }
}

fn server_failure(call: Call<'_>, status: u16, words: String) -> VllmError {
    let call_text = call.to_string();
    if words.contains("EngineCore encountered an issue") || words.contains("EngineDeadError") {
        VllmError::EngineDead { call: call_text, detail: words }
    } else if words.contains("after shutdown") {
        VllmError::ShuttingDown { call: call_text }
    } else {
        VllmError::ServerError { call: call_text, status, detail: words }
    }
}

pub(crate) fn unexpected(call: Call<'_>, status: u16, detail: &str) -> VllmError {
    let detail = if detail.is_empty() { "no words" } else { detail };
    VllmError::Unexpected { call: call.to_string(), status, detail: shorten(detail) }
}

/// The two numbers of `LoRA rank 32 is greater than max_lora_rank 16.`
fn rank_and_maximum(words: &str) -> Option<(u32, u32)> {
    let (rank, rest) = words.split_once("LoRA rank ")?.1.split_once(" is greater than max_lora_rank ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((rank.parse().ok()?, digits.parse().ok()?))
}

/// The words of a refusal, and whose they are.
struct Refusal {
    words: String,
    /// vLLM's own shape: `{"error": …}`.
    by_vllm: bool,
    /// The web framework's shape: `{"detail": …}`.
    by_framework: bool,
}

impl Refusal {
    fn read(body: &[u8]) -> Self {
        let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let error = json.get("error");
        let detail = json.get("detail");
        let words = match (error, detail) {
            (Some(Value::String(words)), _) | (None, Some(Value::String(words))) => shorten(words),
            // Kept whole: what tells one failure of a worker from another may stand at its end.
            (Some(error), _) => error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            (None, Some(detail)) => shorten(&detail.to_string()),
            (None, None) => shorten(&String::from_utf8_lossy(body)),
        };
        Self { words, by_vllm: error.is_some(), by_framework: error.is_none() && detail.is_some() }
    }

    fn worker_failed(&self) -> bool {
        self.words.starts_with("Call to add_lora method failed")
    }

    /// The worker's words, out of vLLM's wrapping.
    fn worker_words(&self) -> &str {
        let words = self.words.split_once("Worker failed with error '").map_or(self.words.as_str(), |(_, words)| words);
        words.split_once("', please check the stack trace").map_or(words, |(words, _)| words)
    }
}

/// At most 300 characters on one line: an error's text ends in a status and in logs.
fn shorten(words: &str) -> String {
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(300) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
