//! The client against small loopback servers that respond, hang, or close the connection.

use super::*;
use crate::ApiKey;
use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

const SHORT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    call: Duration::from_millis(100),
    load: Duration::from_millis(150),
    probe: Duration::from_millis(200),
};

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

/// Starts a server, which runs until the returned set is dropped, and creates a client of it.
async fn http_server(router: Router) -> (JoinSet<()>, VllmClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let endpoint = Endpoint::parse(&url).unwrap().with_api_key(Some(ApiKey::new("secret")));
    (tasks, VllmClient::new(endpoint, Timeouts::default()).unwrap())
}

/// Starts a server that reads each request, then sends `response`, or keeps the connection open if it is `None`.
async fn raw_server(response: Option<&'static str>, timeouts: Timeouts) -> (JoinSet<()>, VllmClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open_connections = Vec::new();
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let read = connection.read(&mut [0; 4096]).await.unwrap();
            assert!(read > 0);
            match response {
                Some(response) => connection.write_all(response.as_bytes()).await.unwrap(),
                None => open_connections.push(connection),
            }
        }
    });
    (tasks, VllmClient::new(Endpoint::parse(&url).unwrap(), timeouts).unwrap())
}

#[tokio::test]
async fn calls_send_the_api_key_and_the_expected_body() {
    let router = Router::new()
        .route(
            "/v1/load_lora_adapter",
            post(|headers: HeaderMap, Json(body): Json<Value>| async move {
                assert_eq!(headers["authorization"], "Bearer secret");
                assert_eq!(body, json!({ "lora_name": "a1", "lora_path": "/adapters/a1" }));
            }),
        )
        .route(
            "/v1/unload_lora_adapter",
            post(|Json(body): Json<Value>| async move {
                assert_eq!(body, json!({ "lora_name": "a1" }));
            }),
        )
        .route(
            "/v1/completions",
            post(|Json(body): Json<Value>| async move {
                assert_eq!(body["max_tokens"], 1);
                Json(json!({ "model": body["model"] }))
            }),
        )
        .route("/health", get(|| async {}))
        .route("/metrics", get(|| async { "process_start_time_seconds 1.5e+09\n" }));
    let (_server, client) = http_server(router).await;
    client.health().await.unwrap();
    client.load(&id("a1"), "/adapters/a1").await.unwrap();
    client.probe(&id("a1")).await.unwrap();
    client.unload(&id("a1")).await.unwrap();
    assert_eq!(client.metrics().await.unwrap().process_start_time.as_deref(), Some("1.5e+09"));
    assert!(!format!("{client:?}").contains("secret"));
}

#[tokio::test]
async fn probe_uses_an_embedding_without_completions_endpoint() {
    let not_found = || async { (StatusCode::NOT_FOUND, Json(json!({ "detail": "Not Found" }))) };
    let embed = |Json(body): Json<Value>| async move { Json(json!({ "model": body["model"], "data": [] })) };
    let router = Router::new().route("/v1/completions", post(not_found)).route("/v1/embeddings", post(embed));
    let (_server, client) = http_server(router).await;
    client.probe(&id("a1")).await.unwrap();
}

#[tokio::test]
async fn probe_fails_when_another_model_responded() {
    let router = Router::new().route("/v1/completions", post(|| async { Json(json!({ "model": "base" })) }));
    let (_server, client) = http_server(router).await;
    assert_eq!(client.probe(&id("a1")).await.unwrap_err().reason(), "UnexpectedResponse");
}

#[tokio::test]
async fn too_large_responses_are_errors() {
    let router = Router::new().route("/v1/models", get(|| async { "x".repeat(MAX_RESPONSE_BYTES + 1) }));
    let (_server, client) = http_server(router).await;
    let error = client.models().await.unwrap_err();
    assert!(error.to_string().contains("more than 8 MiB"), "{error}");
}

#[tokio::test]
async fn refused_connection_is_unreachable_and_without_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = VllmClient::new(Endpoint::parse(&url).unwrap(), Timeouts::default()).unwrap();
    let error = client.load(&id("a1"), "/a1").await.unwrap_err();
    assert_eq!(error.reason(), "Unreachable");
    assert!(error.is_retryable() && !error.may_have_succeeded() && error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn timed_out_call_may_have_succeeded() {
    let (_server, client) = raw_server(None, SHORT_TIMEOUTS).await;
    let calls = [
        (client.health().await, SHORT_TIMEOUTS.call),
        (client.load(&id("a1"), "/a1").await, SHORT_TIMEOUTS.load),
        (client.probe(&id("a1")).await, SHORT_TIMEOUTS.probe),
    ];
    for (result, limit) in calls {
        let error = result.unwrap_err();
        assert!(matches!(&error, VllmError::Timeout { after, .. } if *after == limit), "{error}");
        assert!(error.may_have_succeeded() && error.is_retryable() && !error.needs_intervention());
    }
}

#[tokio::test]
async fn call_may_have_succeeded_when_the_connection_is_lost() {
    for response in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let (_server, client) = raw_server(Some(response), Timeouts::default()).await;
        let error = client.load(&id("a1"), "/a1").await.unwrap_err();
        assert_eq!(error.reason(), "ConnectionLost", "{response:?}: {error}");
        assert!(error.may_have_succeeded() && error.is_retryable());
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (_server, client) =
        raw_server(Some("HTTP/1.1 302 Found\r\nlocation: /health\r\ncontent-length: 0\r\n\r\n"), Timeouts::default())
            .await;
    assert_eq!(client.health().await.unwrap_err().reason(), "UnexpectedResponse");
}

#[test]
fn client_of_an_https_endpoint_can_be_created() {
    VllmClient::new(Endpoint::parse("https://127.0.0.1:1").unwrap(), Timeouts::default()).unwrap();
}

#[test]
fn invalid_api_key_is_rejected_without_printing_it() {
    let endpoint = Endpoint::parse("http://127.0.0.1:1").unwrap().with_api_key(Some(ApiKey::new("se\ncret")));
    let error = VllmClient::new(endpoint, Timeouts::default()).unwrap_err();
    assert!(!error.to_string().contains("cret"));
}
