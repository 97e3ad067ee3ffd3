//! The shapes of the answers that say yes, field by field in the recorded order.

use serde_json::{Value, json};

use super::adapters::LoadedAdapter;

/// vLLM's own is made of its version and a hash of its settings.
const FINGERPRINT: &str = "vllm-0.32.0-862eba88";

/// What is new with every answer.
#[derive(Clone, Debug)]
pub(super) struct ResponseMeta {
    /// 16 hexadecimal digits.
    pub(super) id: String,
    /// Seconds since the epoch.
    pub(super) created: i64,
}

/// Which of the two completion endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompletionKind {
    Chat,
    Text,
}

/// How much was read and said.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenCounts {
    pub(super) prompt: usize,
    pub(super) generated: usize,
}

/// An entry of `/v1/models` for the base model.
pub(super) fn base_model_card(name: &str, root: &str, max_model_len: usize, made: &ResponseMeta) -> Value {
    model_card(name, root, &Value::Null, &json!(max_model_len), made)
}

/// An entry of `/v1/models` for an adapter.
pub(super) fn adapter_card(adapter: &LoadedAdapter, base: &str, made: &ResponseMeta) -> Value {
    model_card(&adapter.name, &adapter.source, &json!(base), &Value::Null, made)
}

fn model_card(name: &str, root: &str, parent: &Value, max_model_len: &Value, made: &ResponseMeta) -> Value {
    json!({
        "id": name, "object": "model", "created": made.created, "owned_by": "vllm",
        "root": root, "parent": parent, "max_model_len": max_model_len,
        "permission": [{
            "id": format!("modelperm-{}", made.id), "object": "model_permission", "created": made.created,
            "allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true,
            "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
            "organization": "*", "group": null, "is_blocking": false,
        }],
    })
}

/// A whole completion.
pub(super) fn completion_response(
    kind: CompletionKind,
    made: &ResponseMeta,
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
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion", "created": made.created, "model": model,
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
            "id": format!("cmpl-{}", made.id), "object": "text_completion", "created": made.created, "model": model,
            "choices": [{
                "index": 0, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null,
                "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null, "routed_experts": null,
            }],
            "service_tier": null, "system_fingerprint": FINGERPRINT, "usage": usage,
            "kv_transfer_params": null, "ec_transfer_params": null, "metrics": null,
        }),
    }
}

/// The first event of a chat's stream: the role, no text.
pub(super) fn role_chunk(made: &ResponseMeta, model: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.created, "model": model,
        "choices": [{
            "index": 0, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null,
        }],
        "prompt_token_ids": null, "prompt_text": null,
    })
}

/// An event with a token; the last one says why it is the last.
pub(super) fn token_chunk(
    kind: CompletionKind,
    made: &ResponseMeta,
    model: &str,
    text: &str,
    finish: Option<&str>,
) -> Value {
    match (kind, finish) {
        (CompletionKind::Chat, None) => json!({
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.created,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": null, "token_ids": null,
            }],
        }),
        (CompletionKind::Chat, Some(finish)) => json!({
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.created,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": finish,
                "stop_reason": null, "token_ids": null,
            }],
        }),
        (CompletionKind::Text, finish) => json!({
            "id": format!("cmpl-{}", made.id), "object": "text_completion", "created": made.created, "model": model,
            "choices": [{
                "index": 0, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null,
                "prompt_token_ids": null, "token_ids": null,
            }],
        }),
    }
}

/// Marks an event as the last one before the end; the event of the usage is marked by itself.
pub(super) fn with_fingerprint(mut chunk: Value) -> Value {
    chunk["system_fingerprint"] = FINGERPRINT.into();
    chunk
}

/// The event that follows the last token when the request asked for usage.
pub(super) fn usage_chunk(kind: CompletionKind, made: &ResponseMeta, model: &str, tokens: TokenCounts) -> Value {
    let (prefix, object) = match kind {
        CompletionKind::Chat => ("chatcmpl", "chat.completion.chunk"),
        CompletionKind::Text => ("cmpl", "text_completion"),
    };
    json!({
        "id": format!("{prefix}-{}", made.id), "object": object, "created": made.created, "model": model, "choices": [],
        "usage": {
            "prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt + tokens.generated,
            "completion_tokens": tokens.generated,
        },
        "system_fingerprint": FINGERPRINT,
    })
}
