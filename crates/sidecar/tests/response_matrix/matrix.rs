//! The expected outcome of each kind of answer.

use crate::{
    outcome::ReplyOutcome,
    reply::{RequestKind, ServerReply},
};
use RequestKind::{Health, Load, Metrics, Models, Probe, Unload};

/// A request, a kind of answer, and the expected outcome.
pub(crate) struct MatrixRow {
    pub(crate) request: RequestKind,
    /// The kind, as [`classify`] names it.
    pub(crate) reply_kind: &'static str,
    adapter: &'static str,
    server: &'static str,
    next: &'static str,
}

impl MatrixRow {
    pub(crate) fn outcome(&self) -> ReplyOutcome {
        let Self { adapter, server, next, .. } = self;
        ReplyOutcome { adapter: (*adapter).to_owned(), server: (*server).to_owned(), next: (*next).to_owned() }
    }
}

/// Returns the kind of an answer by its content, independent of the code under test.
pub(crate) fn classify(request: RequestKind, reply: &ServerReply) -> Option<&'static str> {
    let (status, is_html, body) = match reply {
        ServerReply::ConnectionRefused => return Some("connection refused"),
        ServerReply::NoResponse => return Some("no response"),
        ServerReply::Bytes(_) => return Some("truncated"),
        ServerReply::LargeBody(_) => return Some("oversized"),
        ServerReply::Http { status, content_type, body, .. } => {
            (*status, content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html")), body.as_str())
        }
    };
    let by_vllm = body.starts_with("{\"error\":");
    let has = |text: &str| body.contains(text);
    Some(match (status, request) {
        (200, _) if is_html => "HTML page",
        (200, Load) if body.is_empty() || has("added successfully") => "success",
        (200, Unload) if has("removed successfully") => "success",
        (200, Probe) if has("completion\"") && has(&format!("\"model\":\"{}\"", reply.adapter_id())) => "success",
        (200, Models) if has("\"object\":\"list\"") => "success",
        (200, Metrics) if has("process_start_time_seconds") => "success",
        (200, Metrics) => "foreign metrics",
        (200, Health) if body.is_empty() => "success",
        (200, Probe | Models) => "wrong content",
        (401 | 403, _) => "forbidden",
        (404, _) if body == "{\"detail\":\"Not Found\"}" => "no such endpoint",
        (404, Load) if has("No adapter found for") => "not found",
        (404, Unload) if has("cannot be found") => "unknown adapter",
        (404, Probe) if has("does not exist") => "unknown adapter",
        (400, Load) if has("has already been loaded") => "already loaded",
        (400, Load) if has("conflicts with a served base model") => "base model",
        (500, Load) if has("LoRA is not enabled") => "LoRA off",
        (500, Load) if has("is greater than max_lora_rank") => "rank too high",
        (400 | 500, Load) if has("Call to add_lora method failed") => "bad adapter",
        (400 | 413 | 415 | 422, _) if by_vllm => "rejected",
        (500, _) if has("EngineCore encountered an issue") => "engine dead",
        (500, _) if has("cannot schedule new futures after shutdown") => "shutting down",
        (500..=599, _) => "server error",
        (302 | 404 | 429, _) if !by_vllm => "not from vLLM",
        _ => return None,
    })
}

const fn row(
    request: RequestKind,
    reply_kind: &'static str,
    adapter: &'static str,
    server: &'static str,
    next: &'static str,
) -> MatrixRow {
    MatrixRow { request, reply_kind, adapter, server, next }
}

/// Request, kind of answer, reported state of the adapter, reported state of the server, and the next calls to a server
/// that has recovered.
#[rustfmt::skip]
pub(crate) const MATRIX: &[MatrixRow] = &[
    row(Load, "LoRA off", "Failed LoraOff person", "up LoraOff", "1 s, load"),
    row(Load, "bad adapter", "Failed BadAdapter person", "up", "1 s, load"),
    row(Load, "base model", "Failed NameConflict person", "up", "1 s, load"),
    row(Load, "truncated", "Failed ConnectionLost", "Suspect", "poll, 1 s, load"),
    row(Load, "engine dead", "ServerDied ServerDied", "EngineDead", "30 s, load"),
    row(Load, "success", "Loaded", "up", "probe"),
    row(Load, "shutting down", "Pending ShuttingDown", "Suspect", "poll, 1 s, load"),
    row(Load, "oversized", "Failed UnexpectedResponse person", "up", "poll, 1 s, load"),
    row(Load, "forbidden", "Failed Unauthorized person", "up Unauthorized", "1 s, load"),
    row(Load, "already loaded", "Pending", "up", "poll, probe"),
    row(Load, "no such endpoint", "Failed RuntimeUpdatingOff person", "up RuntimeUpdatingOff", "1 s, load"),
    row(Load, "not found", "Failed AdapterNotFound person", "up", "1 s, load"),
    row(Load, "not from vLLM", "Failed UnexpectedResponse person", "up", "poll, 1 s, load"),
    row(Load, "HTML page", "Failed UnexpectedResponse person", "up", "poll, 1 s, load"),
    row(Load, "rank too high", "Failed RankTooHigh person", "up", "1 s, load"),
    row(Load, "rejected", "Failed Refused person", "up", "1 s, load"),
    row(Load, "connection refused", "Pending Unreachable", "Suspect", "poll, 1 s, load"),
    row(Load, "server error", "Failed ServerError", "up", "poll, 1 s, load"),
    row(Load, "no response", "Failed Timeout", "up", "poll, 1 s, load"),
    row(Probe, "truncated", "Failed ConnectionLost", "Suspect", "poll, 1 s, probe"),
    row(Probe, "engine dead", "ServerDied ServerDied", "EngineDead", "30 s, probe"),
    row(Probe, "success", "Verified", "up", "nothing"),
    row(Probe, "shutting down", "Loaded ShuttingDown", "Suspect", "poll, 1 s, probe"),
    row(Probe, "oversized", "Failed UnexpectedResponse person", "up", "poll, 1 s, probe"),
    row(Probe, "forbidden", "Failed Unauthorized person", "up Unauthorized", "1 s, probe"),
    row(Probe, "no such endpoint", "Failed UnexpectedResponse person", "up", "poll, 1 s, probe"),
    row(Probe, "not from vLLM", "Failed UnexpectedResponse person", "up", "poll, 1 s, probe"),
    row(Probe, "wrong content", "Failed UnexpectedResponse person", "up", "poll, 1 s, probe"),
    row(Probe, "HTML page", "Failed UnexpectedResponse person", "up", "poll, 1 s, probe"),
    row(Probe, "rejected", "Failed Refused person", "up", "1 s, probe"),
    row(Probe, "connection refused", "Loaded Unreachable", "Suspect", "poll, 1 s, probe"),
    row(Probe, "server error", "Failed ServerError", "up", "poll, 1 s, probe"),
    row(Probe, "no response", "Loaded Timeout", "up", "1 s, probe"),
    row(Probe, "unknown adapter", "Loaded", "up", "poll, load"),
    row(Unload, "truncated", "Unloading ConnectionLost", "Suspect", "poll, 1 s, unload"),
    row(Unload, "engine dead", "Unloading EngineDead", "EngineDead", "5 s, unload"),
    row(Unload, "success", "Unloading", "up", "poll, nothing"),
    row(Unload, "shutting down", "Unloading ShuttingDown", "Suspect", "poll, 1 s, unload"),
    row(Unload, "oversized", "Unloading UnexpectedResponse person", "up", "poll, 1 s, unload"),
    row(Unload, "forbidden", "Unloading Unauthorized person", "up Unauthorized", "1 s, unload"),
    row(Unload, "no such endpoint", "Unloading RuntimeUpdatingOff person", "up RuntimeUpdatingOff", "1 s, unload"),
    row(Unload, "not from vLLM", "Unloading UnexpectedResponse person", "up", "poll, 1 s, unload"),
    row(Unload, "HTML page", "Unloading UnexpectedResponse person", "up", "poll, 1 s, unload"),
    row(Unload, "rejected", "Unloading Refused person", "up", "1 s, unload"),
    row(Unload, "connection refused", "Unloading Unreachable", "Suspect", "poll, 1 s, unload"),
    row(Unload, "server error", "Unloading ServerError", "up", "poll, 1 s, unload"),
    row(Unload, "no response", "Unloading Timeout", "up", "poll, 1 s, unload"),
    row(Unload, "unknown adapter", "Unloading", "up", "poll, nothing"),
    row(Health, "truncated", "Verified", "Suspect", "poll, nothing"),
    row(Health, "engine dead", "Pending", "EngineDead", "nothing"),
    row(Health, "success", "Verified", "up", "nothing"),
    row(Health, "shutting down", "Verified", "Suspect", "poll, nothing"),
    row(Health, "oversized", "Verified", "Suspect", "poll, nothing"),
    row(Health, "forbidden", "Verified", "Suspect", "poll, nothing"),
    row(Health, "not from vLLM", "Verified", "Suspect", "poll, nothing"),
    row(Health, "HTML page", "Verified", "Suspect", "poll, nothing"),
    row(Health, "rejected", "Verified", "Suspect", "poll, nothing"),
    row(Health, "connection refused", "Pending", "Unreachable", "nothing"),
    row(Health, "server error", "Pending", "ServerError", "nothing"),
    row(Health, "no response", "Verified", "Suspect", "poll, nothing"),
    row(Models, "truncated", "Verified", "Suspect", "poll, nothing"),
    row(Models, "engine dead", "Pending", "EngineDead", "nothing"),
    row(Models, "success", "Verified", "up", "nothing"),
    row(Models, "shutting down", "Verified", "up ShuttingDown", "nothing"),
    row(Models, "oversized", "Verified", "up", "nothing"),
    row(Models, "forbidden", "Verified", "up Unauthorized", "nothing"),
    row(Models, "not from vLLM", "Verified", "up", "nothing"),
    row(Models, "wrong content", "Verified", "up", "nothing"),
    row(Models, "HTML page", "Verified", "up", "nothing"),
    row(Models, "rejected", "Verified", "up", "nothing"),
    row(Models, "connection refused", "Pending", "Unreachable", "nothing"),
    row(Models, "server error", "Verified", "up", "nothing"),
    row(Models, "no response", "Verified", "up", "nothing"),
    row(Metrics, "truncated", "Verified", "Suspect", "poll, nothing"),
    row(Metrics, "engine dead", "Pending", "EngineDead", "nothing"),
    row(Metrics, "shutting down", "Verified", "up ShuttingDown", "nothing"),
    row(Metrics, "oversized", "Verified", "up", "nothing"),
    row(Metrics, "forbidden", "Verified", "up", "nothing"),
    row(Metrics, "no such endpoint", "Verified", "up", "nothing"),
    row(Metrics, "not from vLLM", "Verified", "up", "nothing"),
    row(Metrics, "foreign metrics", "Verified", "up", "nothing"),
    row(Metrics, "HTML page", "Verified", "up", "nothing"),
    row(Metrics, "rejected", "Verified", "up", "nothing"),
    row(Metrics, "connection refused", "Pending", "Unreachable", "nothing"),
    row(Metrics, "server error", "Verified", "up", "nothing"),
    row(Metrics, "no response", "Verified", "up", "nothing"),
];
