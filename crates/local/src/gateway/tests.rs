//! The gateway against tiny servers.

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
async fn the_model_is_replaced_and_the_answer_names_the_target() {
    let mut bed = GatewayTestbed::start(2, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"]), serving(&["v1"])]);
    let answer = bed.request(completion(r#"{ "messages": [], "model": "alias" }"#)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["x-rollora-target"], "v1");
    let seen = bed.next_request().await;
    assert_eq!(seen.body, r#"{ "messages": [], "model": "v1" }"#);
    assert_eq!(seen.headers["content-length"], seen.body.len().to_string().as_str());
}

#[tokio::test]
async fn requests_go_only_where_the_target_is() {
    let mut bed = GatewayTestbed::start(3, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["base"]), serving(&["base", "v1"]), serving(&["base"])]);
    for _ in 0..6 {
        bed.request(completion(r#"{"model":"alias"}"#)).await;
        assert_eq!(bed.next_request().await.server, 1);
    }
}

#[tokio::test]
async fn a_direct_name_goes_where_it_is_and_an_unknown_one_to_anybody() {
    let mut bed = GatewayTestbed::start(2, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["base"]), serving(&["base", "v1"])]);
    let answer = bed.request(completion(r#"{"model":"v1"}"#)).await;
    assert_eq!((bed.next_request().await.server, answer.headers.get("x-rollora-target")), (1, None));
    bed.request(completion(r#"{"model":"nobody"}"#)).await;
    assert_eq!(bed.next_request().await.body, r#"{"model":"nobody"}"#);
}

#[tokio::test]
async fn what_concerns_one_hop_or_parts_of_rollora_is_not_passed_on() {
    let mut bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let request = "POST /v1/completions?x=1 HTTP/1.1\r\nHost: here\r\nConnection: X-Mine\r\nX-Mine: 1\r\n\
        Keep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: x\r\nAuthorization: Bearer key\r\n\
        X-Gateway-Model-Name-Rewrite: v9\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n";
    let mut client = bed.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    timeout(TIMEOUT, client.read_exact(&mut answer)).await.expect("an answer to Expect").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(br#"{"model":"alias"}"#).await.unwrap();

    let seen = bed.next_request().await;
    let mut names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "host"]);
    assert_eq!((seen.headers["host"].to_str().unwrap(), seen.path.as_str()), ("here", "/v1/completions?x=1"));
}

#[tokio::test]
async fn the_headers_of_an_answer_end_at_this_hop_too() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
            X-Rollora-Target: forged\r\nX-Request-Id: 7\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let bed = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let answer = bed.request(completion(r#"{"model":"v1"}"#)).await;
    assert_eq!((answer.headers.get("x-mine"), answer.headers.get("keep-alive")), (None, None));
    assert_eq!(answer.headers.get("x-rollora-target"), None, "no rule matched");
    assert_eq!(answer.headers["x-request-id"], "7");
}

#[tokio::test]
async fn answers_are_streamed_and_not_held_back() {
    let mut bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut stream = bed.stream(r#"{"model":"alias","stream":true}"#).await;
    for word in ["first", "second"] {
        bed.send_chunk(Bytes::from(word)).await;
        let frame = timeout(TIMEOUT, stream.next()).await.expect("each chunk before the next is written");
        assert_eq!(frame.unwrap().unwrap(), word);
    }
    bed.end_stream();
    assert!(timeout(TIMEOUT, stream.next()).await.unwrap().is_none());
    assert_eq!(bed.in_flight(0), 0);
}

/// A server that writes this and then waits for the end of the connection, of which it tells.
async fn hanging_server(written: &'static str) -> (std::net::SocketAddr, mpsc::Receiver<()>) {
    let (gone, is_gone) = mpsc::channel(1);
    let serve = move |mut stream: tokio::net::TcpStream| {
        let gone = gone.clone();
        async move {
            testbed::read_request(&mut stream).await;
            stream.write_all(written.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
            gone.send(()).await.unwrap();
        }
    };
    (raw_server(serve).await, is_gone)
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_takes_its_request_off_the_server() {
    let (server, mut is_gone) = hanging_server("").await;
    let bed = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut client = bed.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(br#"{"model":"alias"}"#).await.unwrap();
    bed.wait_for(|bed| bed.in_flight(0) == 1).await;
    drop(client);
    timeout(TIMEOUT, is_gone.recv()).await.expect("the server learns that the client is gone").unwrap();
    bed.wait_for(|bed| bed.in_flight(0) == 0).await;
    assert!(!bed.is_suspect(0), "the client left, not the server");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_answer_takes_its_request_off_the_server() {
    let (server, mut is_gone) = hanging_server("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").await;
    let bed = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut stream = bed.stream(r#"{"model":"alias"}"#).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    drop(stream);
    timeout(TIMEOUT, is_gone.recv()).await.expect("the server learns that the client is gone").unwrap();
    bed.wait_for(|bed| bed.in_flight(0) == 0).await;
    assert!(!bed.is_suspect(0), "the client left, not the server");
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_an_answer_is_out_and_the_client_sees_the_cut() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    })
    .await;
    let bed = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut stream = bed.stream(r#"{"model":"alias"}"#).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    assert!(stream.next().await.unwrap().is_err(), "a cut answer must not look whole");
    bed.wait_for(|bed| bed.is_suspect(0) && bed.in_flight(0) == 0).await;
    let answer = bed.request(completion(r#"{"model":"alias"}"#)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_request_that_was_refused_goes_to_another_server() {
    let live = testbed::recording_server().await;
    let dead = testbed::closed_port().await;
    let mut bed = GatewayTestbed::with_servers(vec![dead, live.address], &[alias_rewrite("v1", 100)]).await;
    bed.attach(live);
    bed.update_routing(&[serving(&["v1"]), serving(&["v1"])]);
    for _ in 0..4 {
        assert_eq!(bed.request(completion(r#"{"model":"alias"}"#)).await.status, StatusCode::OK);
        bed.next_request().await;
    }
    assert!(bed.is_suspect(0), "nobody asks it again before its sidecar has looked");
}

#[tokio::test]
async fn a_request_that_a_server_may_have_begun_is_not_sent_to_another() {
    let live = testbed::recording_server().await;
    let dying = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
    })
    .await;
    let mut bed = GatewayTestbed::with_servers(vec![dying, live.address], &[alias_rewrite("v1", 100)]).await;
    bed.attach(live);
    bed.update_routing(&[serving(&["v1"]), serving(&["base"])]);
    let answer = bed.request(completion(r#"{"model":"alias"}"#)).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.text().contains("closed the connection before it answered"), "{}", answer.text());
    assert!(bed.is_suspect(0));
    assert!(bed.received_nothing());
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_costs_no_request() {
    let server = raw_server(|mut stream| async move {
        testbed::read_request(&mut stream).await;
        // Keep-alive, as far as the client can tell; and then it is closed.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    })
    .await;
    let bed = GatewayTestbed::with_servers(vec![server], &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    for _ in 0..20 {
        assert_eq!(bed.request(completion(r#"{"model":"alias"}"#)).await.status, StatusCode::OK);
        bed.wait_for(|bed| bed.has_no_idle_connection(0)).await;
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let mut bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..5 {
        bed.request(completion(r#"{"model":"alias"}"#)).await;
        ports.insert(bed.next_request().await.client_port);
        bed.wait_for(|bed| !bed.has_no_idle_connection(0)).await;
    }
    assert_eq!(ports.len(), 1);
}

#[tokio::test]
async fn what_is_refused_and_how() {
    let bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    let too_long = format!(r#"{{"model":"alias","prompt":"{}"}}"#, "x".repeat(testbed::MAX_BODY));
    let post =
        |path: &str, body: &str| TestRequest { path: path.to_owned(), body: body.to_owned(), ..TestRequest::default() };
    let mut upgrade = completion("");
    upgrade.headers.insert(header::UPGRADE, "websocket".parse().unwrap());
    let cases: Vec<(&str, ServerRoutingState, TestRequest, u16, &str)> = vec![
        (
            "nobody is ready",
            ServerRoutingState::default(),
            completion(r#"{"model":"alias"}"#),
            503,
            "no vLLM server is ready",
        ),
        (
            "nobody has it",
            serving(&["base"]),
            completion(r#"{"model":"alias"}"#),
            503,
            "no server that is ready has `v1`",
        ),
        ("too long", serving(&["v1"]), completion(&too_long), 413, "--max-body"),
        ("two models", serving(&["v1"]), completion(r#"{"model":"a","model":"b"}"#), 400, "more than one `model`"),
        ("administration", serving(&["v1"]), post("/v1/load%5Flora_adapter", "{}"), 403, "administrates"),
        ("no path of inference", serving(&["v1"]), post("/metrics", ""), 404, "inference paths"),
        ("another protocol", serving(&["v1"]), upgrade, 501, "Upgrade is not supported"),
    ];
    for (case, facts, sent, status, words) in cases {
        bed.update_routing(&[facts]);
        let answer = bed.request(sent).await;
        assert_eq!(answer.status.as_u16(), status, "{case}");
        let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{case}: {error}");
        assert_eq!(error["error"]["code"], status, "{case}");
        assert_eq!(answer.headers.contains_key(header::RETRY_AFTER), status == 503, "{case}");
    }
}

#[tokio::test]
async fn a_body_without_length_is_cut_off_at_the_limit() {
    let bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut client = bed.connect().await;
    client.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
    let writing = async { while client.write_all(&chunk).await.is_ok() {} };
    // Either the write fails, since nobody reads any more, or it waits for ever: the answer is there.
    drop(timeout(Duration::from_millis(500), writing).await);
    let mut answer = vec![0; 12];
    timeout(TIMEOUT, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn answers_under_way_end_before_the_gateway_does() {
    let mut bed = GatewayTestbed::start(1, &[alias_rewrite("v1", 100)]).await;
    bed.update_routing(&[serving(&["v1"])]);
    let mut stream = bed.stream(r#"{"model":"alias"}"#).await;
    bed.send_chunk(Bytes::from("first")).await;
    assert!(stream.next().await.is_some());
    bed.stop();
    bed.wait_until_closed().await;
    bed.send_chunk(Bytes::from("last")).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "last");
    bed.end_stream();
    assert!(stream.next().await.is_none());
    timeout(TIMEOUT, bed.wait_until_stopped()).await.expect("nothing is left to wait for");
}
