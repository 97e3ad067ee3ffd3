//! Headers that tell the gateway and the picker which model was requested and chosen.

use crate::{
    clients::{Framing, HttpVersion, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy},
};
use http::{HeaderValue, StatusCode};
use rollora_ext_proc::{RewriteMode, RewriteOptions};

const CHAT_PATH: &str = "/v1/chat/completions";
const REQUEST_BODY: &str = r#"{"messages": [], "model": "alias", "n": 1}"#;

#[tokio::test]
async fn route_follows_the_model_not_forged_headers() {
    if !has_envoy("routing headers") {
        return;
    }
    let rewrite_options = RewriteOptions {
        routing_headers: true,
        base_model: Some(HeaderValue::from_static("base")),
        ..RewriteOptions::default()
    };
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        let fixture = EnvoyFixture::start(EnvoyConfig {
            request_body_mode: mode,
            rewrite_options: rewrite_options.clone(),
            ..EnvoyConfig::default()
        })
        .await;
        for framing in [Framing::Sized, Framing::Chunked] {
            let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, framing)).await;
            assert_eq!((answer.status, answer.header("x-route")), (StatusCode::OK, Some("by-model")), "{mode}");
            let echoed = answer.json();
            assert_eq!(echoed["headers"]["x-gateway-model-name"], "alias");
            assert_eq!(echoed["headers"]["x-gateway-base-model-name"], "base");
            // A client cannot select a route by forging the header, whatever its body contains.
            for other in [r#"{"model": "other"}"#, r#"{"prompt": 1}"#, "no JSON", ""] {
                let forged = [("x-gateway-model-name", "alias")];
                let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &forged, other, framing)).await;
                assert_eq!(answer.header("x-route"), Some("by-default"), "{mode} {other}");
            }
            let right = [("x-gateway-model-name", "alias"), ("x-gateway-base-model-name", "base")];
            let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &right, REQUEST_BODY, framing)).await;
            assert_eq!(answer.header("x-route"), Some("by-model"), "{mode}");
        }
        assert_eq!(fixture.sum_stats("clear_route_cache_ignored").await, 0, "{mode}");
    }
}

#[tokio::test]
async fn picker_gets_the_target_in_a_header() {
    if !has_envoy("the rewrite header") {
        return;
    }
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        let rewrite_options = RewriteOptions { mode: RewriteMode::Header, ..RewriteOptions::default() };
        let fixture =
            EnvoyFixture::start(EnvoyConfig { request_body_mode: mode, rewrite_options, ..EnvoyConfig::default() })
                .await;
        let forged = [("x-gateway-model-name-rewrite", "forged")];
        for (model, target) in [("alias", Some("alias-v2")), ("other", None)] {
            let sent = format!(r#"{{"n": 1, "model": "{model}"}}"#);
            let echoed =
                fixture.fetch(HttpVersion::Http2, post(CHAT_PATH, &forged, &sent, Framing::Chunked)).await.json();
            assert_eq!(echoed["body"], sent, "{mode}");
            for name in ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"] {
                assert_eq!(echoed["headers"][name].as_str(), target, "{mode} {name}");
            }
        }
    }
}

#[tokio::test]
async fn model_comes_from_a_header_without_the_body() {
    if !has_envoy("request_body_mode NONE") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig { request_body_mode: "NONE", ..EnvoyConfig::default() }).await;
    let requested = [("x-gateway-model-name", "alias")];
    let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &requested, REQUEST_BODY, Framing::Sized)).await;
    let echoed = answer.json();
    assert_eq!((&echoed["body"], answer.header("x-rollora-target")), (&REQUEST_BODY.into(), Some("alias-v2")));
    assert_eq!(echoed["headers"]["x-llm-d-model-name-rewrite"], "alias-v2");
    assert_eq!(echoed["headers"]["x-gateway-model-name"], serde_json::Value::Null);
    let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
    assert_eq!((answer.status, answer.header("x-rollora-target")), (StatusCode::OK, None));
    assert!(fixture.get_metrics().await.contains(r#"unrouted_requests_total{reason="Unreadable"} 1"#));
}

#[tokio::test]
async fn observing_filter_counts_responses_by_target() {
    if !has_envoy("the observing filter") {
        return;
    }
    let fixture = EnvoyFixture::start(EnvoyConfig { observability_filter: true, ..EnvoyConfig::default() }).await;
    for _ in 0..3 {
        let answer = fixture.fetch(HttpVersion::Http1, post(CHAT_PATH, &[], REQUEST_BODY, Framing::Sized)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    let expected = [
        r#"rollora_observed_responses_total{target="alias-v2",end="whole"} 3"#,
        r#"rollora_observed_completion_tokens_total{target="alias-v2"} 12"#,
        r#"rollora_observed_responses_in_flight{target="alias-v2"} 0"#,
    ];
    // Envoy does not wait for an observing filter, so the counts may follow a moment later.
    let counted = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        loop {
            let metrics = fixture.get_metrics().await;
            if expected.iter().all(|line| metrics.contains(line)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    assert!(counted.await.is_ok(), "{}", fixture.get_metrics().await);
}
