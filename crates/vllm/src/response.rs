//! Classification of vLLM's responses: a pure function of the call and the response.
//!
//! Some responses share a status and differ in meaning. A 404 of the web framework (`{"detail": …}`) means that the
//! server has no such endpoint; a 404 of vLLM itself (`{"error": {…}}`) means that it has no such adapter. A 500 on a
//! load can come from the adapter, from the server's settings, or from a dead engine; only its message tells.

use crate::VllmError;
use rollora_api::names::AdapterId;
use serde_json::Value;
use std::fmt;

/// One call to a vLLM server. Its `Display` text completes the phrase "the request to …".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiCall<'a> {
    /// Health check, `GET /health`.
    Health,
    /// List of models, `GET /v1/models`.
    Models,
    /// Prometheus metrics, `GET /metrics`.
    Metrics,
    /// Registration of an adapter, `POST /v1/load_lora_adapter`.
    Load {
        /// Id under which the adapter is registered.
        id: &'a AdapterId,
        /// Path or hub name of the adapter, as vLLM sees it.
        path: &'a str,
    },
    /// Removal of an adapter, `POST /v1/unload_lora_adapter`.
    Unload {
        /// Id of the adapter.
        id: &'a AdapterId,
    },
    /// Completion of one token, or an embedding, by the adapter.
    Probe {
        /// Id of the adapter.
        id: &'a AdapterId,
    },
}

impl fmt::Display for ApiCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health => f.write_str("report its health"),
            Self::Models => f.write_str("list its models"),
            Self::Metrics => f.write_str("report its metrics"),
            Self::Load { id, path } => write!(f, "load adapter `{id}` from `{path}`"),
            Self::Unload { id } => write!(f, "unload adapter `{id}`"),
            Self::Probe { id } => write!(f, "complete one token with adapter `{id}`"),
        }
    }
}

/// Classifies the response to `call`: `Ok` if vLLM executed it, else why it did not.
pub fn classify_response(
    call: ApiCall<'_>,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<(), VllmError> {
    if status == 200 {
        // vLLM itself sends JSON, metrics, or text without a type; a web page comes from a proxy in between.
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

/// Classifies the error of the worker process, which reads the adapter's files.
fn load_failure(id: &AdapterId, path: &str, refusal: &ErrorBody) -> VllmError {
    let message = refusal.worker_message();
    if message.contains("LoRA is not enabled") {
        return VllmError::LoraOff;
    }
    if let Some((rank, max)) = parse_rank_limit(message) {
        return VllmError::RankTooHigh { id: id.clone(), rank, max };
    }
    VllmError::BadAdapter { id: id.clone(), path: path.to_owned(), detail: truncate_line(message) }
}

fn server_error(call: ApiCall<'_>, status: u16, message: String) -> VllmError {
    let call_text = call.to_string();
    if message.contains("EngineCore encountered an issue") || message.contains("EngineDeadError") {
        VllmError::EngineDead { call: call_text, detail: message }
    } else if message.contains("after shutdown") {
        VllmError::ShuttingDown { call: call_text }
    } else {
        VllmError::ServerError { call: call_text, status, detail: message }
    }
}

pub(crate) fn unexpected_response(call: ApiCall<'_>, status: u16, detail: &str) -> VllmError {
    let detail = if detail.is_empty() { "an empty response" } else { detail };
    VllmError::UnexpectedResponse { call: call.to_string(), status, detail: truncate_line(detail) }
}

/// Parses the two numbers of `LoRA rank 32 is greater than max_lora_rank 16.`
fn parse_rank_limit(message: &str) -> Option<(u32, u32)> {
    let (rank, rest) = message.split_once("LoRA rank ")?.1.split_once(" is greater than max_lora_rank ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((rank.parse().ok()?, digits.parse().ok()?))
}

/// Message of an error response, and which component sent it.
struct ErrorBody {
    message: String,
    /// The body has the form that vLLM itself uses: `{"error": …}`.
    by_vllm: bool,
    /// The body has the form of the web framework: `{"detail": …}`.
    by_framework: bool,
}

impl ErrorBody {
    fn parse(body: &[u8]) -> Self {
        let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let error = json.get("error");
        let detail = json.get("detail");
        let message = match (error, detail) {
            (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => truncate_line(text),
            // Not truncated: the part that classifies a worker's failure may be at the end.
            (Some(error), _) => error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            (None, Some(detail)) => truncate_line(&detail.to_string()),
            (None, None) => truncate_line(&String::from_utf8_lossy(body)),
        };
        Self { message, by_vllm: error.is_some(), by_framework: error.is_none() && detail.is_some() }
    }

    fn worker_failed(&self) -> bool {
        self.message.starts_with("Call to add_lora method failed")
    }

    /// Returns the worker's message without vLLM's text around it.
    fn worker_message(&self) -> &str {
        let message =
            self.message.split_once("Worker failed with error '").map_or(self.message.as_str(), |(_, rest)| rest);
        message.split_once("', please check the stack trace").map_or(message, |(inner, _)| inner)
    }
}

/// Joins the text to one line of at most 300 characters, because it appears in statuses and logs.
fn truncate_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(300) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
