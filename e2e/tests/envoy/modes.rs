//! Requests in every mode of the filter, with every client protocol and every framing of the body.

use crate::{
    clients::{Framing, HttpVersion, get, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy},
};
use http::StatusCode;
use serde_json::Value;

const CHAT_PATH: &str = "/v1/chat/completions";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;
const REWRITTEN_BODY: &str = r#"{"messages": [], "model": "alias-v2", "n": 1}"#;

#[tokio::test]
async fn the_model_is_replaced_in_every_mode_protocol_and_framing() {
    if !has_envoy("requests in every mode") {
        return;
    }
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED", "STREAMED"] {
        let fixture = EnvoyFixture::start(EnvoyConfig { request_body_mode: mode, ..EnvoyConfig::default() }).await;
        for version in [HttpVersion::Http1, HttpVersion::Http2] {
            for framing in [Framing::Sized, Framing::Chunked, Framing::Trailers] {
                let answer = fixture.fetch(version, post(CHAT_PATH, &[], REQUEST_BODY, framing)).await;
                let case = format!("{mode} {version:?} {framing:?}");
                assert_eq!(answer.status, StatusCode::OK, "{case} {answer:?}");
                let echoed = answer.json();
                assert_eq!(echoed["body"], REWRITTEN_BODY, "{case}");
                assert_eq!(answer.header("x-rollora-target"), Some("alias-v2"), "{case}");
                assert_eq!(
                    answer.header("x-gateway-model-name"),
                    None,
                    "the server's forged header was not removed: {case}"
                );
                let length = (mode == "BUFFERED").then(|| REWRITTEN_BODY.len().to_string());
                assert!(
                    length.is_none() || echoed["headers"]["content-length"].as_str() == length.as_deref(),
                    "{case}"
                );
                // HTTP/1.1 has no trailers after a body with a content-length.
                let passes = framing == Framing::Trailers && mode != "BUFFERED";
                let trailers = if passes { Value::from("7") } else { Value::Null };
                assert_eq!(echoed["trailers"]["x-checksum"], trailers, "{case}");
            }
            let empty = fixture.fetch(version, post(CHAT_PATH, &[], "", Framing::Sized)).await;
            assert_eq!((empty.status, &empty.json()["body"]), (StatusCode::OK, &Value::from("")), "{mode}");
            let chunked = fixture.fetch(version, post(CHAT_PATH, &[], "", Framing::Chunked)).await;
            assert_eq!((chunked.status, &chunked.json()["body"]), (StatusCode::OK, &Value::from("")), "{mode}");
            assert_eq!(fixture.fetch(version, get("/v1/models")).await.status, StatusCode::OK, "{mode}");
            let twice = r#"{"model": "alias", "model": "alias-v2"}"#;
            let twice = fixture.fetch(version, post(CHAT_PATH, &[], twice, Framing::Chunked)).await;
            assert_eq!(twice.status, StatusCode::BAD_REQUEST, "{mode}");
            let forbidden = fixture.fetch(version, post("/v1/load%5Flora_adapter", &[], "{}", Framing::Sized)).await;
            assert_eq!(forbidden.status, StatusCode::FORBIDDEN, "{mode}");
        }
    }
}

#[tokio::test]
async fn large_body_changes_only_in_the_model() {
    if !has_envoy("a long body") {
        return;
    }
    let prompt = "x".repeat(3 << 20);
    let fixture = EnvoyFixture::start(EnvoyConfig::default()).await;
    let sent = format!(r#"{{"prompt":"{prompt}","model":"alias"}}"#);
    let answer = fixture.fetch(HttpVersion::Http2, post(CHAT_PATH, &[], &sent, Framing::Chunked)).await;
    assert_eq!(answer.json()["body"], format!(r#"{{"prompt":"{prompt}","model":"alias-v2"}}"#));
    let fixture = EnvoyFixture::start(EnvoyConfig { request_body_mode: "BUFFERED", ..EnvoyConfig::default() }).await;
    let long = format!(r#"{{"prompt":"{}","model":"alias"}}"#, "x".repeat(100_000));
    let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], &long, Framing::Sized)).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &Value::from(413)));
}

#[tokio::test]
async fn partial_buffering_is_refused_with_an_explanation() {
    if !has_envoy("BUFFERED_PARTIAL") {
        return;
    }
    let fixture =
        EnvoyFixture::start(EnvoyConfig { request_body_mode: "BUFFERED_PARTIAL", ..EnvoyConfig::default() }).await;
    let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let words = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(words.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{words}");
}

#[tokio::test]
async fn envoy_connects_to_the_processor_over_tls() {
    if !has_envoy("TLS") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig { tls: true, ..EnvoyConfig::default() }).await;
    let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!(answer.json()["body"], REWRITTEN_BODY);
    assert!(fixture.sum_stats("cluster.ext-proc.ssl.handshake").await >= 1);
}
