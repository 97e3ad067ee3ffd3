//! What headers tell a gateway and a picker.

use crate::{
    clients::{Framing, HttpVersion, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy},
};
use http::{HeaderValue, StatusCode};
use rollora_ext_proc::{RewriteMode, RewriteOptions};

const CHAT_PATH: &str = "/v1/chat/completions";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

#[tokio::test]
async fn the_route_is_chosen_by_the_model_and_envoy_ignores_no_wish_for_another() {
    if !has_envoy("routing headers") {
        return;
    }
    let how = RewriteOptions {
        routing_headers: true,
        base_model: Some(HeaderValue::from_static("base")),
        ..RewriteOptions::default()
    };
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        let stage = EnvoyFixture::start(EnvoyConfig {
            request_body_mode: mode,
            rewrite_options: how.clone(),
            ..EnvoyConfig::default()
        })
        .await;
        for framing in [Framing::Sized, Framing::Chunked] {
            let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, framing)).await;
            assert_eq!((answer.status, answer.header("x-route")), (StatusCode::OK, Some("by-model")), "{mode}");
            let seen = answer.json();
            assert_eq!(seen["headers"]["x-gateway-model-name"], "alias");
            assert_eq!(seen["headers"]["x-gateway-base-model-name"], "base");
            // A client cannot choose a route by itself, nor whatever it names.
            for other in [r#"{"model": "other"}"#, r#"{"prompt": 1}"#, "no JSON", ""] {
                let forged = [("x-gateway-model-name", "alias")];
                let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &forged, other, framing)).await;
                assert_eq!(answer.header("x-route"), Some("by-default"), "{mode} {other}");
            }
            let right = [("x-gateway-model-name", "alias"), ("x-gateway-base-model-name", "base")];
            let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &right, REQUEST_BODY, framing)).await;
            assert_eq!(answer.header("x-route"), Some("by-model"), "{mode}");
        }
        assert_eq!(stage.sum_stats("clear_route_cache_ignored").await, 0, "{mode}");
    }
}

#[tokio::test]
async fn a_picker_is_told_in_a_header_and_the_body_stays() {
    if !has_envoy("the rewrite header") {
        return;
    }
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        let how = RewriteOptions { mode: RewriteMode::Header, ..RewriteOptions::default() };
        let stage = EnvoyFixture::start(EnvoyConfig {
            request_body_mode: mode,
            rewrite_options: how,
            ..EnvoyConfig::default()
        })
        .await;
        let forged = [("x-gateway-model-name-rewrite", "forged")];
        for (model, told) in [("alias", Some("alias-v2")), ("other", None)] {
            let sent = format!(r#"{{"n": 1, "model": "{model}"}}"#);
            let seen = stage.fetch(HttpVersion::Http2, post(CHAT_PATH, &forged, &sent, Framing::Chunked)).await.json();
            assert_eq!(seen["body"], sent, "{mode}");
            for name in ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"] {
                assert_eq!(seen["headers"][name].as_str(), told, "{mode} {name}");
            }
        }
    }
}

#[tokio::test]
async fn without_the_body_the_model_is_what_an_earlier_filter_says() {
    if !has_envoy("request_body_mode NONE") {
        return;
    }
    let stage = EnvoyFixture::start(EnvoyConfig { request_body_mode: "NONE", ..EnvoyConfig::default() }).await;
    let told = [("x-gateway-model-name", "alias")];
    let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &told, REQUEST_BODY, Framing::Sized)).await;
    let seen = answer.json();
    assert_eq!((&seen["body"], answer.header("x-rollora-target")), (&REQUEST_BODY.into(), Some("alias-v2")));
    assert_eq!(seen["headers"]["x-llm-d-model-name-rewrite"], "alias-v2");
    assert_eq!(seen["headers"]["x-gateway-model-name"], serde_json::Value::Null);
    let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!((answer.status, answer.header("x-rollora-target")), (StatusCode::OK, None));
    assert!(stage.get_metrics().await.contains(r#"unrouted_requests_total{reason="Unreadable"} 1"#));
}

#[tokio::test]
async fn a_filter_that_observes_counts_answers_by_whom_they_come_from() {
    if !has_envoy("the observing filter") {
        return;
    }
    let stage = EnvoyFixture::start(EnvoyConfig { observability_filter: true, ..EnvoyConfig::default() }).await;
    for _ in 0..3 {
        let answer = stage.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let wanted = [
        r#"rollora_observed_answers_total{target="alias-v2",end="whole"} 3"#,
        r#"rollora_observed_completion_tokens_total{target="alias-v2"} 12"#,
        r#"rollora_observed_answers_in_flight{target="alias-v2"} 0"#,
    ];
    // Nobody waits for it, so it may come a moment later.
    let seen = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        loop {
            let metrics = stage.get_metrics().await;
            if wanted.iter().all(|line| metrics.contains(line)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    assert!(seen.await.is_ok(), "{}", stage.get_metrics().await);
}
