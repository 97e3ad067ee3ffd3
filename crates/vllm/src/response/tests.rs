//! Classification of every recorded response to our calls, and of responses that could not be recorded.

use super::*;
use crate::{ModelCard, VllmError};
use serde::Deserialize;

#[derive(Deserialize)]
struct RecordedExchange {
    label: String,
    request: RecordedRequest,
    status: Option<u16>,
    content_type: Option<String>,
    response: Option<String>,
}

#[derive(Deserialize)]
struct RecordedRequest {
    method: String,
    path: String,
    body: Option<Value>,
}

fn recorded_exchanges() -> Vec<RecordedExchange> {
    include_str!("../../../../testbed/testdata/vllm/transcript.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn field_text(body: &Value, field: &str) -> String {
    body.get(field).and_then(Value::as_str).unwrap_or("none").to_owned()
}

/// Classifies the recorded response; `None` if it is not a response to one of our calls.
fn classify(recorded: &RecordedExchange) -> Option<Result<(), VllmError>> {
    let body = recorded.request.body.clone().unwrap_or_default();
    let id = |field| AdapterId::new(field_text(&body, field)).unwrap_or_else(|_| AdapterId::new("none").unwrap());
    let (name, model, path) = (id("lora_name"), id("model"), field_text(&body, "lora_path"));
    let call = match (recorded.request.method.as_str(), recorded.request.path.as_str()) {
        ("GET", "/health") => ApiCall::Health,
        ("GET", "/v1/models") => ApiCall::Models,
        ("GET", "/metrics") => ApiCall::Metrics,
        ("POST", "/v1/load_lora_adapter") => ApiCall::Load { id: &name, path: &path },
        ("POST", "/v1/unload_lora_adapter") => ApiCall::Unload { id: &name },
        ("POST", "/v1/completions" | "/v1/chat/completions") => ApiCall::Probe { id: &model },
        _ => return None,
    };
    let status = recorded.status?;
    let body = recorded.response.as_deref().unwrap_or_default();
    Some(classify_response(call, status, recorded.content_type.as_deref(), body.as_bytes()))
}

fn reason_of(result: &Result<(), VllmError>) -> &'static str {
    result.as_ref().map_or_else(VllmError::reason, |()| "ok")
}

/// Returns the expected class of a recorded response, derived independently of the code under test.
fn expected_reason(recorded: &RecordedExchange) -> &'static str {
    let response = recorded.response.as_deref().unwrap_or_default();
    let unload = recorded.request.path.ends_with("unload_lora_adapter");
    let load = !unload && recorded.request.path.ends_with("load_lora_adapter");
    let has = |text: &str| response.contains(text);
    match recorded.status {
        Some(200) => "ok",
        Some(401) => "Unauthorized",
        Some(404) if (load || unload) && has("{\"detail\"") => "RuntimeUpdatingOff",
        Some(404) if load => "AdapterNotFound",
        Some(404) => "UnknownAdapter",
        Some(400) if has("already been loaded") => "AlreadyLoaded",
        Some(400) if has("served base model") => "NameConflict",
        Some(400) => "Refused",
        Some(500) if has("max_lora_rank") => "RankTooHigh",
        Some(500) if has("--enable-lora") => "LoraOff",
        Some(500) if load => "BadAdapter",
        Some(500) if has("EngineCore") => "EngineDead",
        Some(500) if has("shutdown") => "ShuttingDown",
        _ => "not a recorded class",
    }
}

#[test]
fn recorded_responses_have_the_expected_class() {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for recorded in recorded_exchanges() {
        let Some(result) = classify(&recorded) else { continue };
        assert_eq!(reason_of(&result), expected_reason(&recorded), "{}: {:?}", recorded.label, recorded.response);
        *counts.entry(reason_of(&result)).or_default() += 1;
    }
    let classes: Vec<_> = counts.keys().copied().collect();
    assert_eq!(
        classes,
        [
            "AdapterNotFound",
            "AlreadyLoaded",
            "BadAdapter",
            "EngineDead",
            "LoraOff",
            "NameConflict",
            "RankTooHigh",
            "Refused",
            "RuntimeUpdatingOff",
            "ShuttingDown",
            "Unauthorized",
            "UnknownAdapter",
            "ok",
        ]
    );
}

/// Label of the recording, and the whole error message.
const MESSAGES: &[(&str, &str)] = &[
    (
        "rank 32 > max-lora-rank 16",
        "adapter `rank32` has rank 32 and vLLM takes at most 16: start vLLM with --max-lora-rank 32, or train the \
         adapter with a lower rank",
    ),
    (
        "broken folder: junk",
        "vLLM cannot use adapter `b_junk` from `bad/junk` (Error while deserializing header: header too large): \
         fix its files and give them a new id",
    ),
    (
        "broken folder: dora",
        "vLLM cannot use adapter `b_dora` from `bad/dora` (vLLM does not yet support DoRA.): \
         fix its files and give them a new id",
    ),
    (
        "bad abs path",
        "vLLM found no adapter `bad` at `/nonexistent/path`: check that this folder exists where vLLM runs and \
         contains adapter_config.json, or, for a hub name, that the name is correct and vLLM can reach the hub",
    ),
    ("server without --enable-lora: load", "vLLM runs without LoRA support: start it with --enable-lora"),
    (
        "server without VLLM_ALLOW_RUNTIME_LORA_UPDATING: load",
        "vLLM does not allow loading or unloading adapters at run time: start it with \
          VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    ),
    ("name equals base model", "`tiny` is the name of a base model of this server: give the adapter another id"),
    ("new chat during drain", "vLLM is shutting down and refused to complete one token with adapter `a1`"),
];

#[test]
fn error_messages_name_object_cause_and_remedy() {
    let recorded = recorded_exchanges();
    for (label, message) in MESSAGES {
        let recorded = recorded.iter().find(|recorded| recorded.label == *label).unwrap();
        assert_eq!(classify(recorded).unwrap().unwrap_err().to_string(), *message, "{label}");
    }
}

#[test]
fn responses_without_a_recording_are_classified() {
    let id = AdapterId::new("a1").unwrap();
    let load = ApiCall::Load { id: &id, path: "/a1" };
    let probe = ApiCall::Probe { id: &id };
    let unload = ApiCall::Unload { id: &id };
    let cases = [
        // Not vLLM: a captive portal, a proxy without a backend, a redirect, another program's 404.
        (ApiCall::Health, 200, Some("text/html; charset=utf-8"), "<html>", "UnexpectedResponse"),
        (load, 502, Some("text/html"), "<html>bad gateway</html>", "ServerError"),
        (ApiCall::Models, 302, None, "", "UnexpectedResponse"),
        (ApiCall::Models, 404, Some("text/plain"), "404 page not found", "UnexpectedResponse"),
        (load, 404, Some("text/plain"), "404 page not found", "UnexpectedResponse"),
        (probe, 404, Some("application/json"), "{\"detail\":\"Not Found\"}", "UnexpectedResponse"),
        // vLLM's health endpoint returns 503 if its engine is dead.
        (ApiCall::Health, 503, None, "", "ServerError"),
        (
            unload,
            500,
            Some("application/json"),
            "{\"error\":{\"message\":\"EngineCore encountered an issue.\"}}",
            "EngineDead",
        ),
        (load, 500, None, "Internal Server Error", "ServerError"),
        // Older versions of vLLM return 400 for engine errors of a load.
        (load, 400, None, "{\"error\":{\"message\":\"Call to add_lora method failed: no space\"}}", "BadAdapter"),
        (load, 403, None, "", "Unauthorized"),
        // llm-d's simulator confirms a load with an empty body.
        (load, 200, None, "", "ok"),
        (load, 429, None, "slow down", "UnexpectedResponse"),
    ];
    for (call, status, content_type, body, expected) in cases {
        let result = classify_response(call, status, content_type, body.as_bytes());
        assert_eq!(reason_of(&result), expected, "{call} {status} {body}");
    }
}

#[test]
fn recorded_lists_distinguish_base_models_from_adapters() {
    let recorded = recorded_exchanges();
    let list = |label: &str| {
        let recorded = recorded.iter().find(|recorded| recorded.label == label).unwrap();
        ModelCard::parse_list(recorded.response.as_deref().unwrap().as_bytes()).unwrap()
    };
    let card = |id: &str, root: &str, parent: Option<&str>| ModelCard {
        id: id.to_owned(),
        root: Some(root.to_owned()),
        parent: parent.map(str::to_owned),
    };
    assert_eq!(list("models before"), [card("tiny", "tiny/base", None)]);
    assert!(list("models before")[0].is_base_model());
    assert_eq!(list("models after"), [card("tiny", "tiny/base", None), card("a1", "tiny/adapters/a2", Some("tiny"))]);
}

#[test]
fn long_server_messages_are_truncated_to_one_line() {
    let id = AdapterId::new("a1").unwrap();
    let body = format!("{{\"error\":{{\"message\":\"{}\"}}}}", "Call to add_lora method failed: ü\\n ".repeat(100));
    let error =
        classify_response(ApiCall::Load { id: &id, path: "/a1" }, 500, None, body.as_bytes()).unwrap_err().to_string();
    assert!(error.chars().count() < 450 && !error.contains('\n'), "{error}");
}
