//! A server that drains on shutdown, one whose certificate is renewed, and one that dies while it processes responses.

use crate::{
    clients::{Framing, GatewayClient, HttpVersion, RequestBody, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rollora_ext_proc::RewriteOptions;
use std::{convert::Infallible, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};

const CHAT_PATH: &str = "/v1/chat/completions";
/// The model server answers this path with a stream of events.
const EVENTS_PATH: &str = "/v1/responses";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not within 30 seconds: {what}"));
}

/// Returns a request whose body is what the sender sends.
fn streamed_request() -> (mpsc::UnboundedSender<&'static str>, Request<RequestBody>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let chunks = futures_util::stream::unfold(receiver, async |mut receiver| {
        let chunk: &str = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(chunk.as_bytes()))), receiver))
    });
    let body = StreamBody::new(chunks.boxed()).boxed_unsync();
    (sender, Request::post(CHAT_PATH).header("host", "models").body(body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_drains_requests_on_shutdown_with_and_without_tls() {
    if !has_envoy("the server shuts down") {
        return;
    }
    for tls in [false, true] {
        let mut fixture =
            EnvoyFixture::start(EnvoyConfig { tls, drain_delay: Duration::from_millis(500), ..EnvoyConfig::default() })
                .await;
        // One request whose response streams, and one in the middle of its body.
        let mut client = GatewayClient::connect(fixture.gateway_address(), HttpVersion::Http1).await;
        let streams = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
        let (chunks, request) = streamed_request();
        chunks.send(r#"{"messages": [], "mod"#).unwrap();
        let mut slow = GatewayClient::connect(fixture.gateway_address(), HttpVersion::Http1).await;
        let mut pending = JoinSet::new();
        pending.spawn(async move { slow.fetch(request).await });
        wait_for("the second request has arrived", async || {
            fixture.get_metrics().await.contains("rollora_ext_proc_streams 1")
        })
        .await;

        fixture.request_shutdown();
        // New requests are served during the drain delay.
        let after = fixture.fetch(HttpVersion::Http2, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!((after.status, after.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")), "tls: {tls}");
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(pending.try_join_next().is_none(), "the request ended in the middle of its body");
        chunks.send(r#"el": "alias"}"#).unwrap();
        drop(chunks);
        let slow = pending.join_next().await.unwrap().unwrap();
        assert_eq!((slow.status, slow.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")), "tls: {tls}");
        assert_eq!(slow.json()["body"], r#"{"messages": [], "model": "alias-v2"}"#);
        fixture.wait_for_shutdown().await;
        let streamed = streams.into_body().collect().await.unwrap().to_bytes();
        assert!(streamed.ends_with(b"data: 49\n\n"), "tls: {tls}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_renewal_keeps_open_connections() {
    if !has_envoy("a certificate is renewed") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig { tls: true, ..EnvoyConfig::default() }).await;
    let send = async |gateway| {
        let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
        client.fetch(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await.status
    };
    assert_eq!(send(fixture.gateway_address()).await, StatusCode::OK);
    let second = fixture.start_gateway_trusting("two").await;
    assert_eq!(
        send(second.address()).await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "the server still has the first certificate"
    );

    fixture.renew_certificate("two");
    wait_for("the second Envoy accepts the server's certificate", async || {
        assert_eq!(send(fixture.gateway_address()).await, StatusCode::OK, "the open connection still works");
        send(second.address()).await == StatusCode::OK
    })
    .await;
    assert_eq!(send(fixture.gateway_address()).await, StatusCode::OK);
    let connected = fixture.sum_stats("cluster.ext-proc.upstream_cx_total").await;
    assert_eq!(connected, 1, "the connection was not opened again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_sees_truncation_when_the_processor_dies() {
    if !has_envoy("a server dies while it processes responses") {
        return;
    }
    let rewrite_options = RewriteOptions { restore_model: true, ..RewriteOptions::default() };
    let mut fixture =
        EnvoyFixture::start(EnvoyConfig { rewrite_options, restore_model_name: true, ..EnvoyConfig::default() }).await;
    let whole = fixture.fetch(HttpVersion::Http1, post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert!(whole.body.ends_with(b"data: 49\n\n"), "{whole:?}");
    let mut answers = JoinSet::new();
    let (started, mut started_requests) = mpsc::unbounded_channel();
    for number in 0..20 {
        let (gateway, started) = (fixture.gateway_address(), started.clone());
        let version = if number % 2 == 0 { HttpVersion::Http1 } else { HttpVersion::Http2 };
        answers.spawn(async move {
            let mut client = GatewayClient::connect(gateway, version).await;
            let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
            let mut body = answer.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(first.starts_with(b"data: 0\n\n"), "{first:?}");
            started.send(()).unwrap();
            //             // Keeps the connection open to the end of the response.
            let rest = body.collect().await;
            drop(client);
            rest.is_err()
        });
    }
    for _ in 0..20 {
        started_requests.recv().await.unwrap();
    }
    fixture.kill_server().await;
    while let Some(cut) = answers.join_next().await {
        assert!(cut.unwrap(), "a truncated response looked complete");
    }
}
