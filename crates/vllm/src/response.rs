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
pub enum ApiCall<'a> {
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

impl fmt::Display for ApiCall<'_> {
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
pub fn classify_response(
    call: ApiCall<'_>,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<(), VllmError> {
    if status == 200 {
        // vLLM's own answers are JSON, text without a type, or metrics: a page is from somebody in between.
        return match content_type {
            Some(kind) if kind.starts_with("text/html") => Err(unexpected_response(call, status, "a web page")),
            _ => Ok(()),
        };
    }
    let refusal = ErrorBody::parse(body);
    match (status, call) {
        (401 | 403, _) => Err(VllmError::Unauthorized),
        (404, ApiCall::Load { .. } | ApiCall::Unload { .. }) if refusal.by_framework => {
            Err(VllmError::RuntimeUpdatingOff)
        }
        (404, ApiCall::Load { id, path }) if refusal.by_vllm => {
            Err(VllmError::AdapterNotFound { id: id.clone(), path: path.to_owned() })
        }
        (404, ApiCall::Unload { id } | ApiCall::Probe { id }) if refusal.by_vllm => {
            Err(VllmError::UnknownAdapter { id: id.clone() })
        }
        (400, ApiCall::Load { id, .. }) if refusal.message.contains("has already been loaded") => {
            Err(VllmError::AlreadyLoaded { id: id.clone() })
        }
        (400, ApiCall::Load { id, .. }) if refusal.message.contains("conflicts with a served base model") => {
            Err(VllmError::NameConflict { id: id.clone() })
        }
        (400 | 500, ApiCall::Load { id, path }) if refusal.worker_failed() => Err(load_failure(id, path, &refusal)),
        (400 | 413 | 415 | 422, _) if refusal.by_vllm => {
            Err(VllmError::Refused { call: call.to_string(), detail: refusal.message })
        }
        (500.., _) => Err(server_error(call, status, refusal.message)),
        _ => Err(unexpected_response(call, status, &refusal.message)),
    }
}

/// What the worker, which reads the adapter, had against it.
fn load_failure(id: &AdapterId, path: &str, refusal: &ErrorBody) -> VllmError {
    let words = refusal.worker_message();
    if words.contains("LoRA is not enabled") {
        return VllmError::LoraOff;
    }
    if let Some((rank, max)) = parse_rank_limit(words) {
        return VllmError::RankTooHigh { id: id.clone(), rank, max };
    }
    VllmError::BadAdapter { id: id.clone(), path: path.to_owned(), detail: truncate_line(words) }
}

fn server_error(call: ApiCall<'_>, status: u16, words: String) -> VllmError {
    let call_text = call.to_string();
    if words.contains("EngineCore encountered an issue") || words.contains("EngineDeadError") {
        VllmError::EngineDead { call: call_text, detail: words }
    } else if words.contains("after shutdown") {
        VllmError::ShuttingDown { call: call_text }
    } else {
        VllmError::ServerError { call: call_text, status, detail: words }
    }
}

pub(crate) fn unexpected_response(call: ApiCall<'_>, status: u16, detail: &str) -> VllmError {
    let detail = if detail.is_empty() { "no words" } else { detail };
    VllmError::UnexpectedResponse { call: call.to_string(), status, detail: truncate_line(detail) }
}

/// The two numbers of `LoRA rank 32 is greater than max_lora_rank 16.`
fn parse_rank_limit(words: &str) -> Option<(u32, u32)> {
    let (rank, rest) = words.split_once("LoRA rank ")?.1.split_once(" is greater than max_lora_rank ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((rank.parse().ok()?, digits.parse().ok()?))
}

/// The words of a refusal, and whose they are.
struct ErrorBody {
    message: String,
    /// vLLM's own shape: `{"error": …}`.
    by_vllm: bool,
    /// The web framework's shape: `{"detail": …}`.
    by_framework: bool,
}

impl ErrorBody {
    fn parse(body: &[u8]) -> Self {
        let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let error = json.get("error");
        let detail = json.get("detail");
        let message = match (error, detail) {
            (Some(Value::String(words)), _) | (None, Some(Value::String(words))) => truncate_line(words),
            // Kept whole: what tells one failure of a worker from another may stand at its end.
            (Some(error), _) => error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            (None, Some(detail)) => truncate_line(&detail.to_string()),
            (None, None) => truncate_line(&String::from_utf8_lossy(body)),
        };
        Self { message, by_vllm: error.is_some(), by_framework: error.is_none() && detail.is_some() }
    }

    fn worker_failed(&self) -> bool {
        self.message.starts_with("Call to add_lora method failed")
    }

    /// The worker's words, out of vLLM's wrapping.
    fn worker_message(&self) -> &str {
        let words =
            self.message.split_once("Worker failed with error '").map_or(self.message.as_str(), |(_, words)| words);
        words.split_once("', please check the stack trace").map_or(words, |(words, _)| words)
    }
}

/// At most 300 characters on one line: an error's text ends in a status and in logs.
fn truncate_line(words: &str) -> String {
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(300) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
