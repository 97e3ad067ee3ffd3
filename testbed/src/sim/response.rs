//! Bodies of successful responses, with fields in the recorded order.

use serde_json::{Value, json};

use super::adapters::LoadedAdapter;

/// System fingerprint; vLLM derives it from its version and a hash of its settings.
const FINGERPRINT: &str = "vllm-0.32.0-862eba88";

/// Values that differ between responses.
#[derive(Clone, Debug)]
pub(super) struct ResponseMeta {
    /// Id with 16 hexadecimal digits.
    pub(super) id: String,
    /// Time in seconds since the epoch.
    pub(super) created: i64,
}

/// Kind of the completion endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompletionKind {
    Chat,
    Text,
}

/// Numbers of tokens in prompt and completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenCounts {
    pub(super) prompt: usize,
    pub(super) generated: usize,
}

/// Returns the base model's entry of `/v1/models`.
pub(super) fn base_model_card(name: &str, root: &str, max_model_len: usize, meta: &ResponseMeta) -> Value {
    model_card(name, root, &Value::Null, &json!(max_model_len), meta)
}

/// Returns an adapter's entry of `/v1/models`.
pub(super) fn adapter_card(adapter: &LoadedAdapter, base: &str, meta: &ResponseMeta) -> Value {
    model_card(&adapter.name, &adapter.source, &json!(base), &Value::Null, meta)
}

fn model_card(name: &str, root: &str, parent: &Value, max_model_len: &Value, meta: &ResponseMeta) -> Value {
    json!({
        "id": name, "object": "model", "created": meta.created, "owned_by": "vllm",
        "root": root, "parent": parent, "max_model_len": max_model_len,
        "permission": [{
            "id": format!("modelperm-{}", meta.id), "object": "model_permission", "created": meta.created,
            "allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true,
            "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
            "organization": "*", "group": null, "is_blocking": false,
        }],
    })
}

/// Returns the response of a completion that is not streamed.
pub(super) fn completion_response(
    kind: CompletionKind,
    meta: &ResponseMeta,
    model: &str,
    text: &str,
    finish: &str,
    tokens: TokenCounts,
) -> Value {
    let usage = json!({
        "prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt + tokens.generated, "completion_tokens": tokens.generated,
        "prompt_tokens_details": null, "completion_tokens_details": null,
    });
    match kind {
        CompletionKind::Chat => json!({
            "id": format!("chatcmpl-{}", meta.id), "object": "chat.completion", "created": meta.created, "model": model,
            "choices": [{
                "index": 0,
                "message": {
                    "role": "assistant", "content": text, "refusal": null, "annotations": null, "audio": null,
                    "function_call": null, "reasoning": null,
                },
                "logprobs": null, "finish_reason": finish, "stop_reason": null, "token_ids": null,
                "routed_experts": null,
            }],
            "service_tier": null, "system_fingerprint": FINGERPRINT, "usage": usage,
            "prompt_logprobs": null, "prompt_token_ids": null, "prompt_text": null,
            "kv_transfer_params": null, "ec_transfer_params": null, "metrics": null,
        }),
        CompletionKind::Text => json!({
            "id": format!("cmpl-{}", meta.id), "object": "text_completion", "created": meta.created, "model": model,
            "choices": [{
                "index": 0, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null,
                "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null, "routed_experts": null,
            }],
            "service_tier": null, "system_fingerprint": FINGERPRINT, "usage": usage,
            "kv_transfer_params": null, "ec_transfer_params": null, "metrics": null,
        }),
    }
}

/// Returns the first event of a chat stream: the role, without text.
pub(super) fn role_chunk(meta: &ResponseMeta, model: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{}", meta.id), "object": "chat.completion.chunk", "created": meta.created, "model": model,
        "choices": [{
            "index": 0, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null,
        }],
        "prompt_token_ids": null, "prompt_text": null,
    })
}

/// Returns the event of a token; the last one has a finish reason.
pub(super) fn token_chunk(
    kind: CompletionKind,
    meta: &ResponseMeta,
    model: &str,
    text: &str,
    finish: Option<&str>,
) -> Value {
    match (kind, finish) {
        (CompletionKind::Chat, None) => json!({
            "id": format!("chatcmpl-{}", meta.id), "object": "chat.completion.chunk", "created": meta.created,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": null, "token_ids": null,
            }],
        }),
        (CompletionKind::Chat, Some(finish)) => json!({
            "id": format!("chatcmpl-{}", meta.id), "object": "chat.completion.chunk", "created": meta.created,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": finish,
                "stop_reason": null, "token_ids": null,
            }],
        }),
        (CompletionKind::Text, finish) => json!({
            "id": format!("cmpl-{}", meta.id), "object": "text_completion", "created": meta.created, "model": model,
            "choices": [{
                "index": 0, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null,
                "prompt_token_ids": null, "token_ids": null,
            }],
        }),
    }
}

/// Adds the fingerprint to the last event before `[DONE]`; a usage event has it already.
pub(super) fn with_fingerprint(mut chunk: Value) -> Value {
    chunk["system_fingerprint"] = FINGERPRINT.into();
    chunk
}

/// Returns the event after the last token, for requests that ask for usage.
pub(super) fn usage_chunk(kind: CompletionKind, meta: &ResponseMeta, model: &str, tokens: TokenCounts) -> Value {
    let (prefix, object) = match kind {
        CompletionKind::Chat => ("chatcmpl", "chat.completion.chunk"),
        CompletionKind::Text => ("cmpl", "text_completion"),
    };
    json!({
        "id": format!("{prefix}-{}", meta.id), "object": object, "created": meta.created, "model": model, "choices": [],
        "usage": {
            "prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt + tokens.generated,
            "completion_tokens": tokens.generated,
        },
        "system_fingerprint": FINGERPRINT,
    })
}
