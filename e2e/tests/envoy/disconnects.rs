//! Servers and clients that disconnect.

use crate::{
    clients::{Framing, GatewayClient, HttpVersion, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy},
};
use futures_util::{StreamExt as _, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, StreamBody};
use hyper::body::Frame;
use std::time::Duration;
use tokio::task::JoinSet;

const CHAT_PATH: &str = "/v1/chat/completions";
/// The model server answers this path with a stream of events.
const EVENTS_PATH: &str = "/v1/responses";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processor_truncates_none_of_a_hundred_streams() {
    if !has_envoy("the server is killed during streams") {
        return;
    }
    for observed in [false, true] {
        let mut fixture =
            EnvoyFixture::start(EnvoyConfig { observability_filter: observed, ..EnvoyConfig::default() }).await;
        let mut answers = JoinSet::new();
        let (started, mut started_streams) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..100 {
            let (gateway, started) = (fixture.gateway_address(), started.clone());
            answers.spawn(async move {
                let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
                let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                assert_eq!(answer.headers()["x-rollora-target"], "alias-v2");
                started.send(()).unwrap();
                answer.into_body().collect().await.map(Collected::to_bytes)
            });
        }
        for _ in 0..100 {
            started_streams.recv().await.unwrap();
        }
        fixture.kill_server().await;
        assert_eq!(answers.try_join_next().map(|_| ()), None, "a stream ended too early");
        while let Some(answer) = answers.join_next().await {
            let body = answer.unwrap().unwrap_or_else(|error| panic!("truncated, observed: {observed}: {error}"));
            assert!(body.ends_with(b"data: 49\n\n"), "observed: {observed}");
        }
    }
}

/// With h2's default limit (20 streams that were reset before they were accepted) the connection ends and the other
/// requests get 500. Verified by removing our limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canceled_requests_do_not_fail_others_during_a_stall() {
    if !has_envoy("clients cancel requests while the server stalls") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig::default()).await;
    // Opens the connection that all requests share.
    let first = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(first.status, StatusCode::OK);
    fixture.set_stalled(true);
    let mut others = JoinSet::new();
    for _ in 0..20 {
        let gateway = fixture.gateway_address();
        others.spawn(async move {
            GatewayClient::connect(gateway, HttpVersion::Http1)
                .await
                .fetch(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized))
                .await
        });
    }
    let mut canceling = JoinSet::new();
    for _ in 0..500 {
        let gateway = fixture.gateway_address();
        canceling.spawn(async move {
            let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
            let request = client.send(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized));
            let answered = tokio::time::timeout(Duration::from_millis(150), request).await;
            assert!(answered.is_err(), "a request was answered while the server stalled");
        });
    }
    while let Some(canceled) = canceling.join_next().await {
        canceled.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    fixture.set_stalled(false);
    while let Some(answer) = others.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")));
    }
    let reset_streams = fixture.sum_stats("cluster.ext-proc.upstream_rq_tx_reset").await;
    assert!(
        reset_streams > 400,
        "{reset_streams} streams were reset: with h2's default more than 20 end the connection"
    );
    let closed_connections = fixture.sum_stats("cluster.ext-proc.upstream_cx_destroy_remote").await;
    assert_eq!(closed_connections, 0, "the connection was closed");
    let after = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(after.status, StatusCode::OK);
}

#[tokio::test]
async fn disconnects_leave_no_request_in_flight() {
    if !has_envoy("clients and servers disconnect") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig::default()).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let answer = fixture.fetch(version, post("/v1/embeddings", &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "the model server closed the connection");
        let mut client = GatewayClient::connect(fixture.gateway_address(), version).await;
        let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Chunked)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // The client disconnects in the middle of the response.
        drop((answer, client));
        let mut client = GatewayClient::connect(fixture.gateway_address(), version).await;
        let body = format!(r#"{{"messages":[],"model":"alias","prompt":"{}""#, "x".repeat(100));
        let never_ends = Request::post(CHAT_PATH).header("host", "models").body(
            StreamBody::new(stream::iter([Ok(Frame::data(body.into()))]).chain(stream::pending())).boxed_unsync(),
        );
        let request = client.send(never_ends.unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(100), request).await.is_err());
        // The client disconnects in the middle of its request body.
        drop(client);
    }
    let expected = [
        "rollora_ext_proc_streams 0",
        r#"rollora_router_requests_in_flight{rewrite="ns/r",target="alias-v2"} 0"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 2"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="5xx"} 2"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="none"} 2"#,
    ];
    let counted = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let metrics = fixture.get_metrics().await;
            if expected.iter().all(|line| metrics.contains(line)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(counted.await.is_ok(), "{}", fixture.get_metrics().await);
}
