//! The knobs of the simulator: what a scenario can make a server do, seen through HTTP.
#![expect(clippy::expect_used, clippy::panic, reason = "a test")]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rollora_testbed::http::{Address, Connection, call, request};
use rollora_testbed::sim::{Config, Death, Knobs, LoadFault, Mode, Simulator, Sources};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Longer than anything here takes, and so long that a token never comes by itself.
const LONG: Duration = Duration::from_secs(10);

/// How long to listen before saying that nobody answers.
const SHORT: Duration = Duration::from_millis(100);

async fn start(knobs: Knobs) -> Simulator {
    start_at(0, knobs).await
}

async fn start_at(port: u16, knobs: Knobs) -> Simulator {
    let config = Config { port, sources: Sources::Any, knobs, ..Config::default() };
    timeout(LONG, Simulator::start(config)).await.expect("at once").expect("a free port")
}

async fn ask(simulator: &Simulator, method: &str, path: &str, body: Option<Value>) -> Result<(u16, String), String> {
    let answer = call(&Address::from(simulator.address()), request(method, path, body.as_ref())).await;
    let (status, body) = answer.map_err(|error| format!("{error:#}"))?;
    Ok((status.as_u16(), String::from_utf8(body.to_vec()).expect("a text")))
}

async fn load(simulator: &Simulator, name: &str, source: &str) -> Result<(u16, String), String> {
    ask(simulator, "POST", "/v1/load_lora_adapter", Some(json!({"lora_name": name, "lora_path": source}))).await
}

async fn loaded(simulator: &Simulator, names: &[&str]) {
    for name in names {
        assert_eq!(load(simulator, name, name).await.expect("an answer").0, 200);
    }
}

fn chat(model: &str, max_tokens: u64, stream: bool) -> Value {
    json!({
        "model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens, "stream": stream,
    })
}

async fn say(simulator: &Simulator, model: &str, max_tokens: u64) -> Result<(u16, String), String> {
    ask(simulator, "POST", "/v1/chat/completions", Some(chat(model, max_tokens, false))).await
}

/// A stream whose first event has arrived.
async fn stream(simulator: &Simulator, model: &str, max_tokens: u64) -> (Connection, Incoming) {
    let mut connection = Connection::open(&simulator.address().into()).await.expect("connected");
    let request = request("POST", "/v1/chat/completions", Some(&chat(model, max_tokens, true)));
    let mut body = connection.send(request).await.expect("an answer").into_body();
    body.frame().await.expect("an event").expect("whole");
    (connection, body)
}

async fn until(what: &str, seen: impl Fn() -> bool) {
    let wait = async {
        while !seen() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} did not come true"));
}

fn completions(simulator: &Simulator, model: &str) -> u64 {
    simulator.counters().models.get(model).map_or(0, |counted| counted.completions)
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("a text")
}

#[tokio::test]
async fn a_dying_engine_answers_what_is_in_flight_and_takes_the_server_with_it() {
    let mut simulator =
        start(Knobs { deadly_use: [("deadly".to_owned(), Death::Engine)].into(), ..Knobs::default() }).await;
    loaded(&simulator, &["good", "deadly"]).await;
    let mut idle = Connection::open(&simulator.address().into()).await.expect("connected");
    simulator.turn(|knobs| knobs.token_millis = 60_000);
    let (_connection, events) = stream(&simulator, "good", 100).await;
    let (in_flight, killer) = tokio::join!(say(&simulator, "good", 100), async {
        until("the request beside it", || completions(&simulator, "good") == 2).await;
        say(&simulator, "deadly", 1).await
    });
    for answer in [in_flight, killer] {
        let (status, body) = answer.expect("an answer");
        assert_eq!(status, 500);
        assert!(body.contains("EngineCore encountered an issue"), "{body}");
    }
    let end = events.collect().await.expect("a stream that ends as if it were whole").to_bytes();
    assert!(text(&end).ends_with(
        "data: {\"error\": {\"message\": \"EngineCore encountered an issue. See stack trace (above) for the root \
         cause.\", \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}\n\ndata: [DONE]\n\n"
    ));
    let health = idle.send(request("GET", "/health", None)).await.expect("an answer before the end");
    assert_eq!(health.status(), 503);
    assert_eq!(timeout(LONG, simulator.ended()).await.expect("an end"), "the use of \"deadly\" ends the server");
    assert!(ask(&simulator, "GET", "/health", None).await.is_err());
    assert!(!idle.is_open().await);
}

#[tokio::test]
async fn a_cut_server_answers_nothing_and_comes_back_empty_as_another_one() {
    let simulator = start(Knobs { deadly_load: [("deadly".to_owned(), Death::Cut)].into(), ..Knobs::default() }).await;
    let port = simulator.address().port();
    loaded(&simulator, &["good"]).await;
    let identity = |metrics: String| -> String {
        let line = metrics.lines().find(|line| line.starts_with("process_start_time_seconds ")).expect("an identity");
        line.to_owned()
    };
    let before = identity(ask(&simulator, "GET", "/metrics", None).await.expect("an answer").1);
    simulator.turn(|knobs| knobs.token_millis = 60_000);
    let (_connection, events) = stream(&simulator, "good", 100).await;
    assert!(load(&simulator, "deadly", "org/deadly").await.is_err());
    assert!(events.collect().await.is_err());
    drop(simulator);
    let again = start_at(port, Knobs::default()).await;
    assert_ne!(identity(ask(&again, "GET", "/metrics", None).await.expect("an answer").1), before);
    assert_eq!(again.adapters(), []);
    assert_eq!(say(&again, "good", 1).await.expect("an answer").0, 404);
}

#[tokio::test]
async fn a_named_adapter_fails_to_load_as_told_until_told_otherwise() {
    let simulator = start(Knobs::default()).await;
    for (fault, status, words) in [
        (LoadFault::NotFound, 404, "Loading lora a failed: No adapter found for org/a"),
        (LoadFault::BadWeights, 500, "header too large"),
        (LoadFault::Rank, 500, "LoRA rank 32 is greater than max_lora_rank 16."),
        (LoadFault::Worker("out of memory".to_owned()), 500, "Worker failed with error 'out of memory'"),
    ] {
        simulator.turn(|knobs| knobs.fail_load = [("a".to_owned(), fault)].into());
        let (answered, body) = load(&simulator, "a", "org/a").await.expect("an answer");
        assert!(answered == status && body.contains(words), "{answered} {body}");
    }
    let patch = Some(json!({"fail_load": {}}));
    assert_eq!(ask(&simulator, "PATCH", "/sim/knobs", patch).await.expect("an answer").0, 200);
    assert_eq!(load(&simulator, "a", "org/a").await.expect("an answer").0, 200);
    assert_eq!(simulator.counters().loads["a"], 5);
}

#[tokio::test]
async fn a_hanging_server_accepts_and_is_silent_until_it_is_turned_back() {
    let simulator = start(Knobs::default()).await;
    loaded(&simulator, &["good"]).await;
    simulator.turn(|knobs| knobs.mode = Mode::EngineHangs);
    assert_eq!(ask(&simulator, "GET", "/health", None).await.expect("healthy").0, 200);
    assert!(timeout(SHORT, load(&simulator, "other", "org/other")).await.is_err());
    let silent = say(&simulator, "good", 1);
    let mut silent = std::pin::pin!(silent);
    assert!(timeout(SHORT, silent.as_mut()).await.is_err());
    simulator.turn(|knobs| knobs.mode = Mode::Hangs);
    assert!(timeout(SHORT, ask(&simulator, "GET", "/health", None)).await.is_err());
    assert_eq!(ask(&simulator, "GET", "/sim/knobs", None).await.expect("an answer").0, 200);
    simulator.turn(|knobs| knobs.mode = Mode::Serving);
    assert_eq!(timeout(LONG, silent).await.expect("an answer at last").expect("a good one").0, 200);
}

#[tokio::test]
async fn a_server_counts_what_it_is_asked_for_each_model() {
    let simulator = start(Knobs::default()).await;
    loaded(&simulator, &["a"]).await;
    for tokens in [1, 1, 5] {
        assert_eq!(say(&simulator, "a", tokens).await.expect("an answer").0, 200);
    }
    assert_eq!(say(&simulator, "never", 5).await.expect("an answer").0, 404);
    let counters = simulator.counters();
    assert_eq!((counters.models["a"].single_token, counters.models["a"].longer()), (2, 1));
    assert_eq!((counters.models["never"].completions, counters.models["never"].refused), (1, 1));
    let shown = ask(&simulator, "GET", "/sim/requests", None).await.expect("an answer").1;
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), json!(counters));
    let log = simulator.log();
    assert_eq!(log.last().map(|entry| (entry.status, entry.model.as_deref())), Some((404, Some("never"))));
    ask(&simulator, "DELETE", "/sim/requests", None).await.expect("an answer");
    assert_eq!(simulator.counters(), rollora_testbed::sim::Counters::default());
}

#[tokio::test]
async fn a_stream_outlives_the_unload_of_its_adapter() {
    let simulator = start(Knobs { token_millis: 20, ..Knobs::default() }).await;
    loaded(&simulator, &["a"]).await;
    let (_connection, events) = stream(&simulator, "a", 10).await;
    let unload = Some(json!({"lora_name": "a"}));
    assert_eq!(ask(&simulator, "POST", "/v1/unload_lora_adapter", unload).await.expect("an answer").0, 200);
    assert_eq!(say(&simulator, "a", 1).await.expect("an answer").0, 404);
    let disturbed = words(&events.collect().await.expect("a whole stream").to_bytes());
    loaded(&simulator, &["a"]).await;
    assert_eq!(disturbed, voice(&simulator, "a", 10).await);
}

#[tokio::test]
async fn a_stream_hears_an_in_place_load() {
    let simulator = start(Knobs::default()).await;
    loaded(&simulator, &["old", "new"]).await;
    let (old, new) = (voice(&simulator, "old", 50).await, voice(&simulator, "new", 50).await);
    simulator.turn(|knobs| knobs.token_millis = 20);
    let (_connection, events) = stream(&simulator, "old", 50).await;
    let in_place = Some(json!({"lora_name": "old", "lora_path": "new", "load_inplace": true}));
    assert_eq!(ask(&simulator, "POST", "/v1/load_lora_adapter", in_place).await.expect("an answer").0, 200);
    let mixed = words(&events.collect().await.expect("a whole stream").to_bytes());
    assert_ne!(old[49], new[49], "the words of this place tell the adapters apart");
    assert_eq!(mixed[49], new[49]);
}

async fn voice(simulator: &Simulator, model: &str, tokens: u64) -> Vec<String> {
    let (_connection, events) = stream(simulator, model, tokens).await;
    words(&events.collect().await.expect("a whole stream").to_bytes())
}

fn words(events: &Bytes) -> Vec<String> {
    let events =
        text(events).split("\n\n").filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok());
    events.filter_map(|event: Value| Some(event.pointer("/choices/0/delta/content")?.as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn a_key_guards_the_v1_paths_only() {
    let simulator = start(Knobs { api_key: Some("secret".to_owned()), ..Knobs::default() }).await;
    for (path, status) in
        [("/v1/models", 401), ("/v1/nothing", 401), ("/health", 200), ("/metrics", 200), ("/sim/log", 200)]
    {
        assert_eq!(ask(&simulator, "GET", path, None).await.expect("an answer").0, status, "{path}");
    }
}

#[tokio::test]
async fn a_request_that_gets_no_answer_is_counted_all_the_same() {
    let simulator = start(Knobs::default()).await;
    loaded(&simulator, &["a"]).await;
    simulator.turn(|knobs| knobs.mode = Mode::Hangs);
    tokio::select! {
        answer = say(&simulator, "a", 5) => panic!("{answer:?}"),
        () = until("the count", || completions(&simulator, "a") == 1) => {}
    }
}
