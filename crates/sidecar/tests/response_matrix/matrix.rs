//! What has to come of each kind of answer.

use crate::{
    outcome::ReplyOutcome,
    reply::{RequestKind, ServerReply},
};
use RequestKind::{Health, Load, Metrics, Models, Probe, Unload};

/// A kind of answer and what it causes.
pub(crate) struct MatrixRow {
    pub(crate) request: RequestKind,
    /// The kind, as [`kind`] names it.
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

/// What kind of answer it is, by its own words. Knows nothing of the code under test.
pub(crate) fn classify(asked: RequestKind, reply: &ServerReply) -> Option<&'static str> {
    let (status, html, body) = match reply {
        ServerReply::ConnectionRefused => return Some("refused"),
        ServerReply::NoResponse => return Some("silence"),
        ServerReply::Bytes(_) => return Some("cut"),
        ServerReply::LargeBody(_) => return Some("endless"),
        ServerReply::Http { status, content_type, body, .. } => {
            (*status, content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html")), body.as_str())
        }
    };
    let by_vllm = body.starts_with("{\"error\":");
    let has = |words: &str| body.contains(words);
    Some(match (status, asked) {
        (200, _) if html => "page",
        (200, Load) if body.is_empty() || has("added successfully") => "done",
        (200, Unload) if has("removed successfully") => "done",
        (200, Probe) if has("completion\"") && has(&format!("\"model\":\"{}\"", reply.adapter_id())) => "done",
        (200, Models) if has("\"object\":\"list\"") => "done",
        (200, Metrics) if has("process_start_time_seconds") => "done",
        (200, Metrics) => "nothing of ours",
        (200, Health) if body.is_empty() => "done",
        (200, Probe | Models) => "not what was asked",
        (401 | 403, _) => "forbidden",
        (404, _) if body == "{\"detail\":\"Not Found\"}" => "no such endpoint",
        (404, Load) if has("No adapter found for") => "not found",
        (404, Unload) if has("cannot be found") => "unknown",
        (404, Probe) if has("does not exist") => "unknown",
        (400, Load) if has("has already been loaded") => "loaded already",
        (400, Load) if has("conflicts with a served base model") => "base model",
        (500, Load) if has("LoRA is not enabled") => "LoRA off",
        (500, Load) if has("is greater than max_lora_rank") => "rank",
        (400 | 500, Load) if has("Call to add_lora method failed") => "bad adapter",
        (400 | 413 | 415 | 422, _) if by_vllm => "refusal",
        (500, _) if has("EngineCore encountered an issue") => "dead engine",
        (500, _) if has("cannot schedule new futures after shutdown") => "ending",
        (500..=599, _) => "server error",
        (302 | 404 | 429, _) if !by_vllm => "not vLLM's",
        _ => return None,
    })
}

const fn row(
    asked: RequestKind,
    answer: &'static str,
    adapter: &'static str,
    server: &'static str,
    next: &'static str,
) -> MatrixRow {
    MatrixRow { request: asked, reply_kind: answer, adapter, server, next }
}

/// Asked, the answer, what is told of the adapter, of the server, and what comes next beside a server that is well again.
#[rustfmt::skip]
pub(crate) const MATRIX: &[MatrixRow] = &[
    row(Load, "LoRA off", "Failed LoraOff person", "up LoraOff", "1 s, load"),
    row(Load, "bad adapter", "Failed BadAdapter person", "up", "1 s, load"),
    row(Load, "base model", "Failed NameConflict person", "up", "1 s, load"),
    row(Load, "cut", "Failed ConnectionLost", "Suspect", "look, 1 s, load"),
    row(Load, "dead engine", "ServerDied ServerDied", "EngineDead", "30 s, load"),
    row(Load, "done", "Loaded", "up", "probe"),
    row(Load, "ending", "Pending ShuttingDown", "Suspect", "look, 1 s, load"),
    row(Load, "endless", "Failed UnexpectedAnswer person", "up", "look, 1 s, load"),
    row(Load, "forbidden", "Failed Unauthorized person", "up Unauthorized", "1 s, load"),
    row(Load, "loaded already", "Pending", "up", "look, probe"),
    row(Load, "no such endpoint", "Failed RuntimeUpdatingOff person", "up RuntimeUpdatingOff", "1 s, load"),
    row(Load, "not found", "Failed AdapterNotFound person", "up", "1 s, load"),
    row(Load, "not vLLM's", "Failed UnexpectedAnswer person", "up", "look, 1 s, load"),
    row(Load, "page", "Failed UnexpectedAnswer person", "up", "look, 1 s, load"),
    row(Load, "rank", "Failed RankTooHigh person", "up", "1 s, load"),
    row(Load, "refusal", "Failed Refused person", "up", "1 s, load"),
    row(Load, "refused", "Pending Unreachable", "Suspect", "look, 1 s, load"),
    row(Load, "server error", "Failed ServerError", "up", "look, 1 s, load"),
    row(Load, "silence", "Failed Timeout", "up", "look, 1 s, load"),
    row(Probe, "cut", "Failed ConnectionLost", "Suspect", "look, 1 s, probe"),
    row(Probe, "dead engine", "ServerDied ServerDied", "EngineDead", "30 s, probe"),
    row(Probe, "done", "Verified", "up", "nothing"),
    row(Probe, "ending", "Loaded ShuttingDown", "Suspect", "look, 1 s, probe"),
    row(Probe, "endless", "Failed UnexpectedAnswer person", "up", "look, 1 s, probe"),
    row(Probe, "forbidden", "Failed Unauthorized person", "up Unauthorized", "1 s, probe"),
    row(Probe, "no such endpoint", "Failed UnexpectedAnswer person", "up", "look, 1 s, probe"),
    row(Probe, "not vLLM's", "Failed UnexpectedAnswer person", "up", "look, 1 s, probe"),
    row(Probe, "not what was asked", "Failed UnexpectedAnswer person", "up", "look, 1 s, probe"),
    row(Probe, "page", "Failed UnexpectedAnswer person", "up", "look, 1 s, probe"),
    row(Probe, "refusal", "Failed Refused person", "up", "1 s, probe"),
    row(Probe, "refused", "Loaded Unreachable", "Suspect", "look, 1 s, probe"),
    row(Probe, "server error", "Failed ServerError", "up", "look, 1 s, probe"),
    row(Probe, "silence", "Loaded Timeout", "up", "1 s, probe"),
    row(Probe, "unknown", "Loaded", "up", "look, load"),
    row(Unload, "cut", "Unloading ConnectionLost", "Suspect", "look, 1 s, unload"),
    row(Unload, "dead engine", "Unloading EngineDead", "EngineDead", "5 s, unload"),
    row(Unload, "done", "Unloading", "up", "look, nothing"),
    row(Unload, "ending", "Unloading ShuttingDown", "Suspect", "look, 1 s, unload"),
    row(Unload, "endless", "Unloading UnexpectedAnswer person", "up", "look, 1 s, unload"),
    row(Unload, "forbidden", "Unloading Unauthorized person", "up Unauthorized", "1 s, unload"),
    row(Unload, "no such endpoint", "Unloading RuntimeUpdatingOff person", "up RuntimeUpdatingOff", "1 s, unload"),
    row(Unload, "not vLLM's", "Unloading UnexpectedAnswer person", "up", "look, 1 s, unload"),
    row(Unload, "page", "Unloading UnexpectedAnswer person", "up", "look, 1 s, unload"),
    row(Unload, "refusal", "Unloading Refused person", "up", "1 s, unload"),
    row(Unload, "refused", "Unloading Unreachable", "Suspect", "look, 1 s, unload"),
    row(Unload, "server error", "Unloading ServerError", "up", "look, 1 s, unload"),
    row(Unload, "silence", "Unloading Timeout", "up", "look, 1 s, unload"),
    row(Unload, "unknown", "Unloading", "up", "look, nothing"),
    row(Health, "cut", "Verified", "Suspect", "look, nothing"),
    row(Health, "dead engine", "Pending", "EngineDead", "nothing"),
    row(Health, "done", "Verified", "up", "nothing"),
    row(Health, "ending", "Verified", "Suspect", "look, nothing"),
    row(Health, "endless", "Verified", "Suspect", "look, nothing"),
    row(Health, "forbidden", "Verified", "Suspect", "look, nothing"),
    row(Health, "not vLLM's", "Verified", "Suspect", "look, nothing"),
    row(Health, "page", "Verified", "Suspect", "look, nothing"),
    row(Health, "refusal", "Verified", "Suspect", "look, nothing"),
    row(Health, "refused", "Pending", "Unreachable", "nothing"),
    row(Health, "server error", "Pending", "ServerError", "nothing"),
    row(Health, "silence", "Verified", "Suspect", "look, nothing"),
    row(Models, "cut", "Verified", "Suspect", "look, nothing"),
    row(Models, "dead engine", "Pending", "EngineDead", "nothing"),
    row(Models, "done", "Verified", "up", "nothing"),
    row(Models, "ending", "Verified", "up ShuttingDown", "nothing"),
    row(Models, "endless", "Verified", "up", "nothing"),
    row(Models, "forbidden", "Verified", "up Unauthorized", "nothing"),
    row(Models, "not vLLM's", "Verified", "up", "nothing"),
    row(Models, "not what was asked", "Verified", "up", "nothing"),
    row(Models, "page", "Verified", "up", "nothing"),
    row(Models, "refusal", "Verified", "up", "nothing"),
    row(Models, "refused", "Pending", "Unreachable", "nothing"),
    row(Models, "server error", "Verified", "up", "nothing"),
    row(Models, "silence", "Verified", "up", "nothing"),
    row(Metrics, "cut", "Verified", "Suspect", "look, nothing"),
    row(Metrics, "dead engine", "Pending", "EngineDead", "nothing"),
    row(Metrics, "ending", "Verified", "up ShuttingDown", "nothing"),
    row(Metrics, "endless", "Verified", "up", "nothing"),
    row(Metrics, "forbidden", "Verified", "up", "nothing"),
    row(Metrics, "no such endpoint", "Verified", "up", "nothing"),
    row(Metrics, "not vLLM's", "Verified", "up", "nothing"),
    row(Metrics, "nothing of ours", "Verified", "up", "nothing"),
    row(Metrics, "page", "Verified", "up", "nothing"),
    row(Metrics, "refusal", "Verified", "up", "nothing"),
    row(Metrics, "refused", "Pending", "Unreachable", "nothing"),
    row(Metrics, "server error", "Verified", "up", "nothing"),
    row(Metrics, "silence", "Verified", "up", "nothing"),
];
