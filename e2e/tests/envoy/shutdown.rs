//! A server that is asked to end, one whose certificate is renewed, and one that dies while it reads answers.

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
/// Which the model server answers with events.
const EVENTS_PATH: &str = "/v1/responses";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// A request whose body comes as it is sent here.
fn streamed_request() -> (mpsc::UnboundedSender<&'static str>, Request<RequestBody>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece: &str = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes()))), receiver))
    });
    let body = StreamBody::new(pieces.boxed()).boxed_unsync();
    (sender, Request::post(CHAT_PATH).header("host", "models").body(body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_end_finishes_what_has_begun_with_tls_and_without() {
    if !has_envoy("the server is asked to end") {
        return;
    }
    for tls in [false, true] {
        let mut stage =
            EnvoyFixture::start(EnvoyConfig { tls, drain_delay: Duration::from_millis(500), ..EnvoyConfig::default() })
                .await;
        // One that streams, and one in the middle of its body.
        let mut client = GatewayClient::connect(stage.gateway_address(), HttpVersion::Http1).await;
        let streams = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
        let (pieces, request) = streamed_request();
        pieces.send(r#"{"messages": [], "mod"#).unwrap();
        let mut slow = GatewayClient::connect(stage.gateway_address(), HttpVersion::Http1).await;
        let mut asking = JoinSet::new();
        asking.spawn(async move { slow.fetch(request).await });
        wait_for("the second request is there", async || {
            stage.get_metrics().await.contains("rollora_ext_proc_streams 1")
        })
        .await;

        stage.request_shutdown();
        // New ones are served for a moment.
        let after = stage.fetch(HttpVersion::Http2, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!((after.status, after.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")), "tls: {tls}");
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(asking.try_join_next().is_none(), "it is in the middle");
        pieces.send(r#"el": "alias"}"#).unwrap();
        drop(pieces);
        let slow = asking.join_next().await.unwrap().unwrap();
        assert_eq!((slow.status, slow.header("x-rollora-target")), (StatusCode::OK, Some("alias-v2")), "tls: {tls}");
        assert_eq!(slow.json()["body"], r#"{"messages": [], "model": "alias-v2"}"#);
        stage.wait_for_shutdown().await;
        let streamed = streams.into_body().collect().await.unwrap().to_bytes();
        assert!(streamed.ends_with(b"data: 49\n\n"), "tls: {tls}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_under_a_connection_that_lives_on() {
    if !has_envoy("a certificate is renewed") {
        return;
    }
    let stage = EnvoyFixture::start(EnvoyConfig { tls: true, ..EnvoyConfig::default() }).await;
    let ask = async |gateway| {
        let mut client = GatewayClient::connect(gateway, HttpVersion::Http1).await;
        client.fetch(post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await.status
    };
    assert_eq!(ask(stage.gateway_address()).await, StatusCode::OK);
    let second = stage.start_gateway_trusting("two").await;
    assert_eq!(ask(second.address()).await, StatusCode::INTERNAL_SERVER_ERROR, "nobody has the other certificate yet");

    stage.renew_certificate("two");
    wait_for("the second Envoy believes the server", async || {
        assert_eq!(ask(stage.gateway_address()).await, StatusCode::OK, "whoever is connected is served");
        ask(second.address()).await == StatusCode::OK
    })
    .await;
    assert_eq!(ask(stage.gateway_address()).await, StatusCode::OK);
    let connected = stage.sum_stats("cluster.ext-proc.upstream_cx_total").await;
    assert_eq!(connected, 1, "the connection is the one that it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_a_dead_server_was_reading_is_seen_to_be_cut() {
    if !has_envoy("a server dies while it reads answers") {
        return;
    }
    let how = RewriteOptions { restore_model: true, ..RewriteOptions::default() };
    let mut stage =
        EnvoyFixture::start(EnvoyConfig { rewrite_options: how, restore_model_name: true, ..EnvoyConfig::default() })
            .await;
    let whole = stage.fetch(HttpVersion::Http1, post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert!(whole.body.ends_with(b"data: 49\n\n"), "{whole:?}");
    let mut answers = JoinSet::new();
    let (begun, mut begins) = mpsc::unbounded_channel();
    for number in 0..20 {
        let (gateway, begun) = (stage.gateway_address(), begun.clone());
        let version = if number % 2 == 0 { HttpVersion::Http1 } else { HttpVersion::Http2 };
        answers.spawn(async move {
            let mut client = GatewayClient::connect(gateway, version).await;
            let answer = client.send(post(EVENTS_PATH, &[], REQUEST_BODY, Framing::Sized)).await.unwrap();
            let mut body = answer.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(first.starts_with(b"data: 0\n\n"), "{first:?}");
            begun.send(()).unwrap();
            // The connection lives until the end.
            let rest = body.collect().await;
            drop(client);
            rest.is_err()
        });
    }
    for _ in 0..20 {
        begins.recv().await.unwrap();
    }
    stage.kill_server().await;
    while let Some(cut) = answers.join_next().await {
        assert!(cut.unwrap(), "nobody takes half an answer for a whole one");
    }
}
