//! Servers and clients that go away.

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
/// Which the model server answers with events.
const EVENTS_PATH: &str = "/v1/responses";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_the_middle_of_a_hundred_streams_cuts_none() {
    if !has_envoy("the server is killed while answers stream") {
        return;
    }
    for observed in [false, true] {
        let mut stage =
            EnvoyFixture::start(EnvoyConfig { observability_filter: observed, ..EnvoyConfig::default() }).await;
        let mut answers = JoinSet::new();
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..100 {
            let (gateway, begun) = (stage.gateway_address(), begun.clone());
            answers.spawn(async move {
                let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
                let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                assert_eq!(answer.headers()["x-rollora-target"], "alias-v2");
                begun.send(()).unwrap();
                answer.into_body().collect().await.map(Collected::to_bytes)
            });
        }
        for _ in 0..100 {
            begins.recv().await.unwrap();
        }
        stage.kill_server().await;
        assert_eq!(answers.try_join_next().map(|_| ()), None, "they are in the middle");
        while let Some(answer) = answers.join_next().await {
            let body = answer.unwrap().unwrap_or_else(|error| panic!("cut, observed: {observed}: {error}"));
            assert!(body.ends_with(b"data: 49\n\n"), "observed: {observed}");
        }
    }
}

/// With h2's own limits (20 streams that were reset before they were looked at) the connection ends and the others get
/// 500: tried by taking ours out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_clients_give_up_while_the_server_stalls_and_no_other_request_fails() {
    if !has_envoy("clients give up while the server stalls") {
        return;
    }
    let stage = EnvoyFixture::start(EnvoyConfig::default()).await;
    // The connection is there, and everybody shares it.
    let first = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(first.status, StatusCode::OK);
    stage.set_stalled(true);
    let mut others = JoinSet::new();
    for _ in 0..20 {
        let gateway = stage.gateway_address();
        others.spawn(async move {
            GatewayClient::connect(gateway, HttpVersion::Http1)
                .await
                .fetch(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized))
                .await
        });
    }
    let mut leavers = JoinSet::new();
    for _ in 0..500 {
        let gateway = stage.gateway_address();
        leavers.spawn(async move {
            let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
            let asked = client.send(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized));
            let answered = tokio::time::timeout(Duration::from_millis(150), asked).await;
            assert!(answered.is_err(), "nobody is answered meanwhile");
        });
    }
    while let Some(left) = leavers.join_next().await {
        left.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    stage.set_stalled(false);
    while let Some(answer) = others.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")));
    }
    let given_up = stage.sum_stats("cluster.ext-proc.upstream_rq_tx_reset").await;
    assert!(given_up > 400, "{given_up} streams were reset: with h2's default more than 20 end the connection");
    let cut = stage.sum_stats("cluster.ext-proc.upstream_cx_destroy_remote").await;
    assert_eq!(cut, 0, "the connection lives on");
    let after = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(after.status, StatusCode::OK);
}

#[tokio::test]
async fn whoever_hangs_up_in_the_middle_leaves_nothing_behind() {
    if !has_envoy("clients and servers hang up") {
        return;
    }
    let stage = EnvoyFixture::start(EnvoyConfig::default()).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let answer = stage.fetch(version, post("/v1/embeddings", &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "the server hung up");
        let mut client = GatewayClient::connect(stage.gateway_address(), version).await;
        let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Chunked)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // In the middle of its answer.
        drop((answer, client));
        let mut client = GatewayClient::connect(stage.gateway_address(), version).await;
        let body = format!(r#"{{"messages":[],"model":"alias","prompt":"{}""#, "x".repeat(100));
        let never_ends = Request::post(CHAT_PATH).header("host", "models").body(
            StreamBody::new(stream::iter([Ok(Frame::data(body.into()))]).chain(stream::pending())).boxed_unsync(),
        );
        let asked = client.send(never_ends.unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err());
        // In the middle of its body.
        drop(client);
    }
    let wanted = [
        "rollora_ext_proc_streams 0",
        r#"rollora_router_requests_in_flight{rewrite="ns/r",target="alias-v2"} 0"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 2"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="5xx"} 2"#,
        r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="none"} 2"#,
    ];
    let counted = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let metrics = stage.get_metrics().await;
            if wanted.iter().all(|line| metrics.contains(line)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(counted.await.is_ok(), "{}", stage.get_metrics().await);
}
