//! Classification of vLLM's responses, as a pure function of the call and its response.
//!
//! The status alone is ambiguous in two cases. A 404 of the web framework (`{"detail": …}`) means that the server has
//! no such endpoint; a 404 of vLLM itself (`{"error": {…}}`) means that it has no such adapter. And a 500 on a load
//! can be caused by the adapter, by the server's settings, or by a dead engine: only the message distinguishes them.

use crate::VllmError;
use rollora_api::names::AdapterId;
use serde_json::Value;
use std::fmt;

/// One request to a server. `Display` writes it as a verb phrase for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiCall<'a> {
    /// `GET /health`: checks the server's health.
    Health,
    /// `GET /v1/models`: lists base models and loaded adapters.
    Models,
    /// `GET /metrics`: reads the server's Prometheus metrics.
    Metrics,
    /// `POST /v1/load_lora_adapter`: loads an adapter.
    Load {
        /// Id under which the adapter is loaded.
        id: &'a AdapterId,
        /// Path in vLLM's file system, or hub name.
        path: &'a str,
    },
    /// `POST /v1/unload_lora_adapter`: unloads an adapter.
    Unload {
        /// Id of the adapter.
        id: &'a AdapterId,
    },
    /// A completion of one token by the adapter, or an embedding if the server has no completions endpoint.
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

/// Returns whether the call succeeded, judged by `status`, `content_type` and `body` of the response.
///
/// # Errors
///
/// Every response that does not confirm the call becomes one class of [`VllmError`].
pub fn classify_response(
    call: ApiCall<'_>,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<(), VllmError> {
    if status == 200 {
        // vLLM responds with JSON, metrics, or a body without a type: a web page comes from a proxy in between.
        return match content_type {
            Some(content_type) if content_type.starts_with("text/html") => {
                Err(unexpected_response(call, status, "a web page"))
            }
            _ => Ok(()),
        };
    }
    let error = ErrorBody::parse(body);
    match (status, call) {
        (401 | 403, _) => Err(VllmError::Unauthorized),
        (404, ApiCall::Load { .. } | ApiCall::Unload { .. }) if error.by_framework => {
            Err(VllmError::RuntimeUpdatingOff)
        }
        (404, ApiCall::Load { id, path }) if error.by_vllm => {
            Err(VllmError::AdapterNotFound { id: id.clone(), path: path.to_owned() })
        }
        (404, ApiCall::Unload { id } | ApiCall::Probe { id }) if error.by_vllm => {
            Err(VllmError::UnknownAdapter { id: id.clone() })
        }
        (400, ApiCall::Load { id, .. }) if error.message.contains("has already been loaded") => {
            Err(VllmError::AlreadyLoaded { id: id.clone() })
        }
        (400, ApiCall::Load { id, .. }) if error.message.contains("conflicts with a served base model") => {
            Err(VllmError::NameConflict { id: id.clone() })
        }
        (400 | 500, ApiCall::Load { id, path }) if error.worker_failed() => Err(load_failure(id, path, &error)),
        (400 | 413 | 415 | 422, _) if error.by_vllm => {
            Err(VllmError::Refused { call: call.to_string(), detail: error.message })
        }
        (500.., _) => Err(server_error(call, status, error.message)),
        _ => Err(unexpected_response(call, status, &error.message)),
    }
}

/// Classifies an error of the worker process, which reads the adapter's files.
fn load_failure(id: &AdapterId, path: &str, error: &ErrorBody) -> VllmError {
    let message = error.worker_message();
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
    let detail = if detail.is_empty() { "empty body" } else { detail };
    VllmError::UnexpectedResponse { call: call.to_string(), status, detail: truncate_line(detail) }
}

/// Parses the two numbers of `LoRA rank 32 is greater than max_lora_rank 16.`
fn parse_rank_limit(message: &str) -> Option<(u32, u32)> {
    let (rank, rest) = message.split_once("LoRA rank ")?.1.split_once(" is greater than max_lora_rank ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((rank.parse().ok()?, digits.parse().ok()?))
}

/// Message of an error response, and the component that sent it.
struct ErrorBody {
    message: String,
    /// The body has vLLM's own shape: `{"error": …}`.
    by_vllm: bool,
    /// The body has the web framework's shape: `{"detail": …}`.
    by_framework: bool,
}

impl ErrorBody {
    fn parse(body: &[u8]) -> Self {
        let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let error = json.get("error");
        let detail = json.get("detail");
        let message = match (error, detail) {
            (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => truncate_line(text),
            // Not truncated: the part that distinguishes failures of a worker may be at the end.
            (Some(error), _) => error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            (None, Some(detail)) => truncate_line(&detail.to_string()),
            (None, None) => truncate_line(&String::from_utf8_lossy(body)),
        };
        Self { message, by_vllm: error.is_some(), by_framework: error.is_none() && detail.is_some() }
    }

    fn worker_failed(&self) -> bool {
        self.message.starts_with("Call to add_lora method failed")
    }

    /// Extracts the worker's own message from the text that vLLM wraps it in.
    fn worker_message(&self) -> &str {
        let message =
            self.message.split_once("Worker failed with error '").map_or(self.message.as_str(), |(_, message)| message);
        message.split_once("', please check the stack trace").map_or(message, |(message, _)| message)
    }
}

/// Shortens `text` to at most 300 characters on one line, because it is shown in statuses and logs.
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
