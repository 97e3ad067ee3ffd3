//! Tests of the gateway with small servers behind it.

mod testbed;

use super::*;
use bytes::Bytes;
use http::{StatusCode, header};
use std::time::Duration;
use testbed::{GatewayTestbed, TestRequest, alias_rewrite, completion, raw_server, serving};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn model_is_replaced_and_the_response_names_the_target() {
    let mut gateway = GatewayTestbed::start(2, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"]), serving(&["v1"])]);
    let response = gateway.request(completion(r#"{ "messages": [], "model": "alias" }"#)).await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.headers["x-rollora-target"], "v1");
    let received = gateway.next_request().await;
    assert_eq!(received.body, r#"{ "messages": [], "model": "v1" }"#);
    assert_eq!(received.headers["content-length"], received.body.len().to_string().as_str());
}

#[tokio::test]
async fn requests_go_only_to_servers_with_the_target() {
    let mut gateway = GatewayTestbed::start(3, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["base"]), serving(&["base", "v1"]), serving(&["base"])]);
    for _ in 0..6 {
        gateway.request(completion(r#"{"model":"alias"}"#)).await;
        assert_eq!(gateway.next_request().await.server, 1);
    }
}

#[tokio::test]
async fn direct_model_goes_to_its_server_unknown_model_to_any() {
    let mut gateway = GatewayTestbed::start(2, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["base"]), serving(&["base", "v1"])]);
    let response = gateway.request(completion(r#"{"model":"v1"}"#)).await;
    assert_eq!((gateway.next_request().await.server, response.headers.get("x-rollora-target")), (1, None));
    gateway.request(completion(r#"{"model":"unknown"}"#)).await;
    assert_eq!(gateway.next_request().await.body, r#"{"model":"unknown"}"#);
}

#[tokio::test]
async fn hop_by_hop_and_internal_headers_are_not_forwarded() {
    let mut gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let request = "POST /v1/completions?x=1 HTTP/1.1\r\nHost: here\r\nConnection: X-Mine\r\nX-Mine: 1\r\n\
        Keep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: x\r\nAuthorization: Bearer key\r\n\
        X-Gateway-Model-Name-Rewrite: v9\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n";
    let mut client = gateway.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut response = [0; 25];
    timeout(TIMEOUT, client.read_exact(&mut response)).await.expect("a response to Expect").unwrap();
    assert_eq!(&response, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(br#"{"model":"alias"}"#).await.unwrap();

    let received = gateway.next_request().await;
    let mut names: Vec<&str> = received.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "host"]);
    assert_eq!((received.headers["host"].to_str().unwrap(), received.path.as_str()), ("here", "/v1/completions?x=1"));
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_response_are_removed() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        let response = b"HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
            X-Rollora-Target: forged\r\nX-Request-Id: 7\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(response).await.unwrap();
    })
    .await;
    let gateway = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let response = gateway.request(completion(r#"{"model":"v1"}"#)).await;
    assert_eq!((response.headers.get("x-mine"), response.headers.get("keep-alive")), (None, None));
    assert_eq!(response.headers.get("x-rollora-target"), None, "no rule matched");
    assert_eq!(response.headers["x-request-id"], "7");
}

#[tokio::test]
async fn responses_are_streamed_without_buffering() {
    let mut gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut stream = gateway.stream(r#"{"model":"alias","stream":true}"#).await;
    for word in ["first", "second"] {
        gateway.send_chunk(Bytes::from(word)).await;
        let frame = timeout(TIMEOUT, stream.next()).await.expect("each chunk before the next is written");
        assert_eq!(frame.unwrap().unwrap(), word);
    }
    gateway.end_stream();
    assert!(timeout(TIMEOUT, stream.next()).await.unwrap().is_none());
    assert_eq!(gateway.in_flight(0), 0);
}

/// A server that writes `written`, waits for the end of the connection, and reports that on the channel.
async fn hanging_server(written: &'static str) -> (std::net::SocketAddr, mpsc::Receiver<()>) {
    let (closed_tx, closed) = mpsc::channel(1);
    let serve = move |mut stream: tokio::net::TcpStream| {
        let closed_tx = closed_tx.clone();
        async move {
            testbed::read_request(&mut stream).await;
            stream.write_all(written.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
            closed_tx.send(()).await.unwrap();
        }
    };
    (raw_server(serve).await, closed)
}

#[tokio::test]
async fn disconnect_before_the_response_cancels_the_request() {
    let (server, mut closed) = hanging_server("").await;
    let gateway = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut client = gateway.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(br#"{"model":"alias"}"#).await.unwrap();
    gateway.wait_for(|gateway| gateway.in_flight(0) == 1).await;
    drop(client);
    timeout(TIMEOUT, closed.recv()).await.expect("the server learns that the client is gone").unwrap();
    gateway.wait_for(|gateway| gateway.in_flight(0) == 0).await;
    assert!(!gateway.is_suspect(0), "the client left, not the server");
}

#[tokio::test]
async fn disconnect_during_the_response_cancels_the_request() {
    let (server, mut closed) = hanging_server("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").await;
    let gateway = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut stream = gateway.stream(r#"{"model":"alias"}"#).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    drop(stream);
    timeout(TIMEOUT, closed.recv()).await.expect("the server learns that the client is gone").unwrap();
    gateway.wait_for(|gateway| gateway.in_flight(0) == 0).await;
    assert!(!gateway.is_suspect(0), "the client left, not the server");
}

#[tokio::test]
async fn server_crash_during_a_response_is_visible_to_the_client() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    })
    .await;
    let gateway = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut stream = gateway.stream(r#"{"model":"alias"}"#).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    assert!(stream.next().await.unwrap().is_err(), "an incomplete response must not look complete");
    gateway.wait_for(|gateway| gateway.is_suspect(0) && gateway.in_flight(0) == 0).await;
    let response = gateway.request(completion(r#"{"model":"alias"}"#)).await;
    assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn refused_connection_is_retried_on_another_server() {
    let live = testbed::recording_server().await;
    let dead = testbed::closed_port().await;
    let mut gateway = GatewayTestbed::with_servers(vec![dead, live.address], &[alias_rewrite("v1", 100)]).await;
    gateway.attach(live);
    gateway.update_routing(&[serving(&["v1"]), serving(&["v1"])]);
    for _ in 0..4 {
        assert_eq!(gateway.request(completion(r#"{"model":"alias"}"#)).await.status, StatusCode::OK);
        gateway.next_request().await;
    }
    assert!(gateway.is_suspect(0), "it must get no requests before its sidecar has probed it");
}

#[tokio::test]
async fn request_that_may_be_in_progress_is_not_retried() {
    let live = testbed::recording_server().await;
    let dying = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
    })
    .await;
    let mut gateway = GatewayTestbed::with_servers(vec![dying, live.address], &[alias_rewrite("v1", 100)]).await;
    gateway.attach(live);
    gateway.update_routing(&[serving(&["v1"]), serving(&["base"])]);
    let response = gateway.request(completion(r#"{"model":"alias"}"#)).await;
    assert_eq!(response.status, StatusCode::BAD_GATEWAY);
    assert!(response.text().contains("closed the connection before it responded"), "{}", response.text());
    assert!(gateway.is_suspect(0));
    assert!(gateway.received_nothing());
}

#[tokio::test]
async fn idle_connection_closed_by_the_server_fails_no_request() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        // The response announces keep-alive, but the connection is closed after it.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    })
    .await;
    let gateway = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    for _ in 0..20 {
        assert_eq!(gateway.request(completion(r#"{"model":"alias"}"#)).await.status, StatusCode::OK);
        gateway.wait_for(|gateway| gateway.has_no_idle_connection(0)).await;
    }
}

#[tokio::test]
async fn idle_connection_is_reused() {
    let mut gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..5 {
        gateway.request(completion(r#"{"model":"alias"}"#)).await;
        ports.insert(gateway.next_request().await.client_port);
        gateway.wait_for(|gateway| !gateway.has_no_idle_connection(0)).await;
    }
    assert_eq!(ports.len(), 1);
}

#[tokio::test]
async fn refusals_have_their_status_and_message() {
    let gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    let too_long = format!(r#"{{"model":"alias","prompt":"{}"}}"#, "x".repeat(testbed::MAX_BODY));
    let post =
        |path: &str, body: &str| TestRequest { path: path.to_owned(), body: body.to_owned(), ..TestRequest::default() };
    let mut upgrade = completion("");
    upgrade.headers.insert(header::UPGRADE, "websocket".parse().unwrap());
    let cases: Vec<(&str, ServerRoutingState, TestRequest, u16, &str)> = vec![
        (
            "no server is ready",
            ServerRoutingState::default(),
            completion(r#"{"model":"alias"}"#),
            503,
            "no vLLM server is ready",
        ),
        (
            "no server has the target",
            serving(&["base"]),
            completion(r#"{"model":"alias"}"#),
            503,
            "no ready server has loaded `v1`",
        ),
        ("too long", serving(&["v1"]), completion(&too_long), 413, "--max-body"),
        ("two models", serving(&["v1"]), completion(r#"{"model":"a","model":"b"}"#), 400, "more than one `model`"),
        ("administration", serving(&["v1"]), post("/v1/load%5Flora_adapter", "{}"), 403, "administers"),
        ("no path of inference", serving(&["v1"]), post("/metrics", ""), 404, "inference paths"),
        ("another protocol", serving(&["v1"]), upgrade, 501, "Upgrade is not supported"),
    ];
    for (case, state, sent, status, words) in cases {
        gateway.update_routing(&[state]);
        let response = gateway.request(sent).await;
        assert_eq!(response.status.as_u16(), status, "{case}");
        let error: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{case}: {error}");
        assert_eq!(error["error"]["code"], status, "{case}");
        assert_eq!(response.headers.contains_key(header::RETRY_AFTER), status == 503, "{case}");
    }
}

#[tokio::test]
async fn body_without_length_is_refused_at_the_limit() {
    let gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut client = gateway.connect().await;
    client.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
    let writing = async { while client.write_all(&chunk).await.is_ok() {} };
    // The write fails because the gateway has stopped reading, or it blocks permanently: the response was sent before.
    drop(timeout(Duration::from_millis(500), writing).await);
    let mut response = vec![0; 12];
    timeout(TIMEOUT, client.read_exact(&mut response)).await.unwrap().unwrap();
    assert_eq!(response, b"HTTP/1.1 413");
}

#[tokio::test]
async fn shutdown_waits_for_responses_in_flight() {
    let mut gateway = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    gateway.update_routing(&[serving(&["v1"])]);
    let mut stream = gateway.stream(r#"{"model":"alias"}"#).await;
    gateway.send_chunk(Bytes::from("first")).await;
    assert!(stream.next().await.is_some());
    gateway.stop();
    gateway.wait_until_closed().await;
    gateway.send_chunk(Bytes::from("last")).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "last");
    gateway.end_stream();
    assert!(stream.next().await.is_none());
    timeout(TIMEOUT, gateway.wait_until_stopped()).await.expect("the gateway stops after its last response");
}
