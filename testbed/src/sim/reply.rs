//! The shapes of the answers that say yes, field by field in the recorded order.

use serde_json::{Value, json};

use super::adapters::Adapter;

/// vLLM's own is made of its version and a hash of its settings.
const FINGERPRINT: &str = "vllm-0.32.0-862eba88";

/// What is new with every answer.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// 16 hexadecimal digits.
    pub(super) id: String,
    /// Seconds since the epoch.
    pub(super) at: i64,
}

/// Which of the two completion endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// How much was read and said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    pub(super) prompt: usize,
    pub(super) said: usize,
}

/// An entry of `/v1/models` for the base model.
pub(super) fn base_card(name: &str, root: &str, max_model_len: usize, made: &Made) -> Value {
    card(name, root, &Value::Null, &json!(max_model_len), made)
}

/// An entry of `/v1/models` for an adapter.
pub(super) fn adapter_card(adapter: &Adapter, base: &str, made: &Made) -> Value {
    card(&adapter.name, &adapter.source, &json!(base), &Value::Null, made)
}

fn card(name: &str, root: &str, parent: &Value, max_model_len: &Value, made: &Made) -> Value {
    json!({
        "id": name, "object": "model", "created": made.at, "owned_by": "vllm",
        "root": root, "parent": parent, "max_model_len": max_model_len,
        "permission": [{
            "id": format!("modelperm-{}", made.id), "object": "model_permission", "created": made.at,
            "allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true,
            "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
            "organization": "*", "group": null, "is_blocking": false,
        }],
    })
}

/// A whole completion.
pub(super) fn completion(kind: Kind, made: &Made, model: &str, text: &str, finish: &str, tokens: Tokens) -> Value {
    let usage = json!({
        "prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt + tokens.said, "completion_tokens": tokens.said,
        "prompt_tokens_details": null, "completion_tokens_details": null,
    });
    match kind {
        Kind::Chat => json!({
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion", "created": made.at, "model": model,
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
        Kind::Text => json!({
            "id": format!("cmpl-{}", made.id), "object": "text_completion", "created": made.at, "model": model,
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
pub(super) fn role_chunk(made: &Made, model: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.at, "model": model,
        "choices": [{
            "index": 0, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null,
        }],
        "prompt_token_ids": null, "prompt_text": null,
    })
}

/// An event with a token; the last one says why it is the last.
pub(super) fn token_chunk(kind: Kind, made: &Made, model: &str, text: &str, finish: Option<&str>) -> Value {
    match (kind, finish) {
        (Kind::Chat, None) => json!({
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.at,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": null, "token_ids": null,
            }],
        }),
        (Kind::Chat, Some(finish)) => json!({
            "id": format!("chatcmpl-{}", made.id), "object": "chat.completion.chunk", "created": made.at,
            "model": model,
            "choices": [{
                "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": finish,
                "stop_reason": null, "token_ids": null,
            }],
        }),
        (Kind::Text, finish) => json!({
            "id": format!("cmpl-{}", made.id), "object": "text_completion", "created": made.at, "model": model,
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
pub(super) fn usage_chunk(kind: Kind, made: &Made, model: &str, tokens: Tokens) -> Value {
    let (prefix, object) = match kind {
        Kind::Chat => ("chatcmpl", "chat.completion.chunk"),
        Kind::Text => ("cmpl", "text_completion"),
    };
    json!({
        "id": format!("{prefix}-{}", made.id), "object": object, "created": made.at, "model": model, "choices": [],
        "usage": {
            "prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt + tokens.said,
            "completion_tokens": tokens.said,
        },
        "system_fingerprint": FINGERPRINT,
    })
}
