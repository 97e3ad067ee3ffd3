//! The requests that upstream's tests state (`crates/router/tests/vectors`), through the real Envoy.

#[path = "../../../crates/router/tests/vectors/request.rs"]
#[expect(dead_code, reason = "where a vector comes from is looked at beside it")]
mod request;

use crate::{
    clients::{Framing, HttpVersion, get, post},
    fixture::{EnvoyConfig, EnvoyFixture, has_envoy, rewrite},
};
use http::StatusCode;
use request::RequestVector;
use rollora_ext_proc::RewriteOptions;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Vectors {
    requests: Vec<RequestVector>,
}

#[tokio::test]
async fn requests_become_what_upstreams_vectors_say_also_behind_envoy() {
    if !has_envoy("upstream's vectors") {
        return;
    }
    let vectors: Vectors =
        serde_json::from_str(include_str!("../../../crates/router/tests/vectors/upstream.json")).unwrap();
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        for generic in [None, Some("fallback")] {
            let exact = rewrite("chat", Some("chat"), "chat-a");
            let rewrites = [exact].into_iter().chain(generic.map(|target| rewrite("generic", None, target))).collect();
            let how = RewriteOptions { routing_headers: true, ..RewriteOptions::default() };
            let stage = EnvoyFixture::start(EnvoyConfig {
                request_body_mode: mode,
                rewrite_options: how,
                rewrites,
                ..EnvoyConfig::default()
            })
            .await;
            let ours = vectors.requests.iter().filter(|vector| vector.generic.as_deref() == generic);
            for vector in ours {
                vector.check(&stage, mode).await;
            }
        }
    }
}

impl RequestVector {
    async fn check(&self, stage: &EnvoyFixture, mode: &str) {
        let case = format!("{mode}: {}", self.origin.name);
        let mut request = match &self.chunks {
            Some(pieces) => post("/v1/completions", &[], &pieces.concat(), Framing::Chunked),
            None => get("/v1/models"),
        };
        for (name, value) in &self.headers {
            request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let answer = stage.fetch(HttpVersion::Http1, request).await;
        if let Some(refused) = self.refused_status {
            assert_eq!(answer.status.as_u16(), refused, "{case}");
            return;
        }
        assert_eq!(
            (answer.status, answer.header("x-rollora-target")),
            (StatusCode::OK, self.target.as_deref()),
            "{case}"
        );
        let seen = answer.json();
        assert_eq!(seen["body"].as_str(), self.expected_body.as_deref(), "{case}");
        // Who names nobody is told as the target that a rule for everybody chose.
        let told = self.requested_model.as_deref().or(self.target.as_deref());
        assert_eq!(seen["headers"]["x-gateway-model-name"].as_str(), told, "{case}");
        for name in ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"] {
            assert_eq!(seen["headers"][name].as_str(), None, "{case}");
        }
    }
}
