//! The knobs of the simulator: how a scenario can disturb a server, observed through HTTP.
#![expect(clippy::expect_used, clippy::panic, reason = "a test")]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rollora_testbed::http::{self, HttpConnection, ListenAddress, request};
use rollora_testbed::sim::{AllowedSources, CrashMode, Knobs, LoadFault, ServingMode, Simulator, SimulatorConfig};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Longer than any request takes, and so short that a token of 60 s never arrives.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request must stay unanswered to count as hanging.
const SILENCE_WINDOW: Duration = Duration::from_millis(100);

async fn start_simulator(knobs: Knobs) -> Simulator {
    start_simulator_at(0, knobs).await
}

async fn start_simulator_at(port: u16, knobs: Knobs) -> Simulator {
    let config = SimulatorConfig { port, sources: AllowedSources::Any, knobs, ..SimulatorConfig::default() };
    timeout(WAIT_TIMEOUT, Simulator::start(config)).await.expect("starts in time").expect("a free port")
}

async fn send_request(
    simulator: &Simulator,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, String), String> {
    let response =
        http::send_request(&ListenAddress::from(simulator.address()), request(method, path, body.as_ref())).await;
    let (status, body) = response.map_err(|error| format!("{error:#}"))?;
    Ok((status.as_u16(), String::from_utf8(body.to_vec()).expect("a text")))
}

async fn load_adapter(simulator: &Simulator, name: &str, source: &str) -> Result<(u16, String), String> {
    send_request(simulator, "POST", "/v1/load_lora_adapter", Some(json!({"lora_name": name, "lora_path": source})))
        .await
}

async fn load_adapters(simulator: &Simulator, names: &[&str]) {
    for name in names {
        assert_eq!(load_adapter(simulator, name, name).await.expect("a response").0, 200);
    }
}

fn chat_body(model: &str, max_tokens: u64, stream: bool) -> Value {
    json!({
        "model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens, "stream": stream,
    })
}

async fn complete_chat(simulator: &Simulator, model: &str, max_tokens: u64) -> Result<(u16, String), String> {
    send_request(simulator, "POST", "/v1/chat/completions", Some(chat_body(model, max_tokens, false))).await
}

/// Starts a stream and waits for its first event.
async fn start_stream(simulator: &Simulator, model: &str, max_tokens: u64) -> (HttpConnection, Incoming) {
    let mut connection = HttpConnection::open(&simulator.address().into()).await.expect("connected");
    let request = request("POST", "/v1/chat/completions", Some(&chat_body(model, max_tokens, true)));
    let mut body = connection.send(request).await.expect("a response").into_body();
    body.frame().await.expect("an event").expect("an intact frame");
    (connection, body)
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(WAIT_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

fn completion_count(simulator: &Simulator, model: &str) -> u64 {
    simulator.counters().models.get(model).map_or(0, |counters| counters.completions)
}

fn utf8(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("a text")
}

#[tokio::test]
async fn failed_engine_answers_pending_requests_then_server_exits() {
    let mut simulator =
        start_simulator(Knobs { deadly_use: [("deadly".to_owned(), CrashMode::Engine)].into(), ..Knobs::default() })
            .await;
    load_adapters(&simulator, &["good", "deadly"]).await;
    let mut idle = HttpConnection::open(&simulator.address().into()).await.expect("connected");
    simulator.update_knobs(|knobs| knobs.token_millis = 60_000);
    let (_connection, events) = start_stream(&simulator, "good", 100).await;
    let (in_flight, killer) = tokio::join!(complete_chat(&simulator, "good", 100), async {
        wait_for("the request in flight", || completion_count(&simulator, "good") == 2).await;
        complete_chat(&simulator, "deadly", 1).await
    });
    for response in [in_flight, killer] {
        let (status, body) = response.expect("a response");
        assert_eq!(status, 500);
        assert!(body.contains("EngineCore encountered an issue"), "{body}");
    }
    let end = events.collect().await.expect("the stream ends normally").to_bytes();
    assert!(utf8(&end).ends_with(
        "data: {\"error\": {\"message\": \"EngineCore encountered an issue. See stack trace (above) for the root \
         cause.\", \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}\n\ndata: [DONE]\n\n"
    ));
    let health = idle.send(request("GET", "/health", None)).await.expect("a response before the exit");
    assert_eq!(health.status(), 503);
    assert_eq!(
        timeout(WAIT_TIMEOUT, simulator.wait_exit()).await.expect("exits in time"),
        "using \"deadly\" crashes the server"
    );
    assert!(send_request(&simulator, "GET", "/health", None).await.is_err());
    assert!(!idle.is_open().await);
}

#[tokio::test]
async fn cut_server_sends_no_response_and_restarts_empty() {
    let simulator =
        start_simulator(Knobs { deadly_load: [("deadly".to_owned(), CrashMode::Cut)].into(), ..Knobs::default() })
            .await;
    let port = simulator.address().port();
    load_adapters(&simulator, &["good"]).await;
    let identity = |metrics: String| -> String {
        let line = metrics.lines().find(|line| line.starts_with("process_start_time_seconds ")).expect("an identity");
        line.to_owned()
    };
    let before = identity(send_request(&simulator, "GET", "/metrics", None).await.expect("a response").1);
    simulator.update_knobs(|knobs| knobs.token_millis = 60_000);
    let (_connection, events) = start_stream(&simulator, "good", 100).await;
    assert!(load_adapter(&simulator, "deadly", "org/deadly").await.is_err());
    assert!(events.collect().await.is_err());
    drop(simulator);
    let again = start_simulator_at(port, Knobs::default()).await;
    assert_ne!(identity(send_request(&again, "GET", "/metrics", None).await.expect("a response").1), before);
    assert_eq!(again.adapters(), []);
    assert_eq!(complete_chat(&again, "good", 1).await.expect("a response").0, 404);
}

#[tokio::test]
async fn load_fault_persists_until_it_is_cleared() {
    let simulator = start_simulator(Knobs::default()).await;
    for (fault, status, message) in [
        (LoadFault::NotFound, 404, "Loading lora a failed: No adapter found for org/a"),
        (LoadFault::BadWeights, 500, "header too large"),
        (LoadFault::Rank, 500, "LoRA rank 32 is greater than max_lora_rank 16."),
        (LoadFault::Worker("out of memory".to_owned()), 500, "Worker failed with error 'out of memory'"),
    ] {
        simulator.update_knobs(|knobs| knobs.fail_load = [("a".to_owned(), fault)].into());
        let (response_status, body) = load_adapter(&simulator, "a", "org/a").await.expect("a response");
        assert!(response_status == status && body.contains(message), "{response_status} {body}");
    }
    let patch = Some(json!({"fail_load": {}}));
    assert_eq!(send_request(&simulator, "PATCH", "/sim/knobs", patch).await.expect("a response").0, 200);
    assert_eq!(load_adapter(&simulator, "a", "org/a").await.expect("a response").0, 200);
    assert_eq!(simulator.counters().loads["a"], 5);
}

#[tokio::test]
async fn hanging_server_accepts_but_responds_only_later() {
    let simulator = start_simulator(Knobs::default()).await;
    load_adapters(&simulator, &["good"]).await;
    simulator.update_knobs(|knobs| knobs.mode = ServingMode::EngineHangs);
    assert_eq!(send_request(&simulator, "GET", "/health", None).await.expect("healthy").0, 200);
    assert!(timeout(SILENCE_WINDOW, load_adapter(&simulator, "other", "org/other")).await.is_err());
    let silent = complete_chat(&simulator, "good", 1);
    let mut silent = std::pin::pin!(silent);
    assert!(timeout(SILENCE_WINDOW, silent.as_mut()).await.is_err());
    simulator.update_knobs(|knobs| knobs.mode = ServingMode::Hangs);
    assert!(timeout(SILENCE_WINDOW, send_request(&simulator, "GET", "/health", None)).await.is_err());
    assert_eq!(send_request(&simulator, "GET", "/sim/knobs", None).await.expect("a response").0, 200);
    simulator.update_knobs(|knobs| knobs.mode = ServingMode::Serving);
    assert_eq!(timeout(WAIT_TIMEOUT, silent).await.expect("a late response").expect("a valid response").0, 200);
}

#[tokio::test]
async fn requests_are_counted_by_model() {
    let simulator = start_simulator(Knobs::default()).await;
    load_adapters(&simulator, &["a"]).await;
    for tokens in [1, 1, 5] {
        assert_eq!(complete_chat(&simulator, "a", tokens).await.expect("a response").0, 200);
    }
    assert_eq!(complete_chat(&simulator, "never", 5).await.expect("a response").0, 404);
    let counters = simulator.counters();
    assert_eq!((counters.models["a"].single_token, counters.models["a"].multi_token()), (2, 1));
    assert_eq!((counters.models["never"].completions, counters.models["never"].refused), (1, 1));
    let shown = send_request(&simulator, "GET", "/sim/requests", None).await.expect("a response").1;
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), json!(counters));
    let log = simulator.answered_requests();
    assert_eq!(log.last().map(|entry| (entry.status, entry.model.as_deref())), Some((404, Some("never"))));
    send_request(&simulator, "DELETE", "/sim/requests", None).await.expect("a response");
    assert_eq!(simulator.counters(), rollora_testbed::sim::RequestCounters::default());
}

#[tokio::test]
async fn stream_survives_the_unload_of_its_adapter() {
    let simulator = start_simulator(Knobs { token_millis: 20, ..Knobs::default() }).await;
    load_adapters(&simulator, &["a"]).await;
    let (_connection, events) = start_stream(&simulator, "a", 10).await;
    let unload = Some(json!({"lora_name": "a"}));
    assert_eq!(send_request(&simulator, "POST", "/v1/unload_lora_adapter", unload).await.expect("a response").0, 200);
    assert_eq!(complete_chat(&simulator, "a", 1).await.expect("a response").0, 404);
    let unloaded = event_contents(&events.collect().await.expect("a complete stream").to_bytes());
    load_adapters(&simulator, &["a"]).await;
    assert_eq!(unloaded, stream_contents(&simulator, "a", 10).await);
}

#[tokio::test]
async fn in_place_load_changes_a_running_stream() {
    let simulator = start_simulator(Knobs::default()).await;
    load_adapters(&simulator, &["old", "new"]).await;
    let (old, new) = (stream_contents(&simulator, "old", 50).await, stream_contents(&simulator, "new", 50).await);
    simulator.update_knobs(|knobs| knobs.token_millis = 20);
    let (_connection, events) = start_stream(&simulator, "old", 50).await;
    let in_place = Some(json!({"lora_name": "old", "lora_path": "new", "load_inplace": true}));
    assert_eq!(send_request(&simulator, "POST", "/v1/load_lora_adapter", in_place).await.expect("a response").0, 200);
    let mixed = event_contents(&events.collect().await.expect("a complete stream").to_bytes());
    assert_ne!(old[49], new[49], "the words at this index must differ between the adapters");
    assert_eq!(mixed[49], new[49]);
}

async fn stream_contents(simulator: &Simulator, model: &str, tokens: u64) -> Vec<String> {
    let (_connection, events) = start_stream(simulator, model, tokens).await;
    event_contents(&events.collect().await.expect("a complete stream").to_bytes())
}

fn event_contents(events: &Bytes) -> Vec<String> {
    let events =
        utf8(events).split("\n\n").filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok());
    events.filter_map(|event: Value| Some(event.pointer("/choices/0/delta/content")?.as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn api_key_protects_only_v1_paths() {
    let simulator = start_simulator(Knobs { api_key: Some("secret".to_owned()), ..Knobs::default() }).await;
    for (path, status) in
        [("/v1/models", 401), ("/v1/nothing", 401), ("/health", 200), ("/metrics", 200), ("/sim/log", 200)]
    {
        assert_eq!(send_request(&simulator, "GET", path, None).await.expect("a response").0, status, "{path}");
    }
}

#[tokio::test]
async fn unanswered_request_is_counted() {
    let simulator = start_simulator(Knobs::default()).await;
    load_adapters(&simulator, &["a"]).await;
    simulator.update_knobs(|knobs| knobs.mode = ServingMode::Hangs);
    tokio::select! {
        response = complete_chat(&simulator, "a", 5) => panic!("{response:?}"),
        () = wait_for("the count", || completion_count(&simulator, "a") == 1) => {}
    }
}
