//! The requests of upstream's test vectors (`crates/router/tests/vectors`), through a real Envoy.

#[path = "../../../crates/router/tests/vectors/request.rs"]
#[expect(dead_code, reason = "the origin of a vector is documentation")]
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
async fn upstream_request_vectors_hold_behind_envoy() {
    if !has_envoy("upstream's vectors") {
        return;
    }
    let vectors: Vectors =
        serde_json::from_str(include_str!("../../../crates/router/tests/vectors/upstream.json")).unwrap();
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        for generic in [None, Some("fallback")] {
            let exact = rewrite("chat", Some("chat"), "chat-a");
            let rewrites = [exact].into_iter().chain(generic.map(|target| rewrite("generic", None, target))).collect();
            let rewrite_options = RewriteOptions { routing_headers: true, ..RewriteOptions::default() };
            let fixture = EnvoyFixture::start(EnvoyConfig {
                request_body_mode: mode,
                rewrite_options,
                rewrites,
                ..EnvoyConfig::default()
            })
            .await;
            let matching = vectors.requests.iter().filter(|vector| vector.generic.as_deref() == generic);
            for vector in matching {
                vector.check(&fixture, mode).await;
            }
        }
    }
}

impl RequestVector {
    async fn check(&self, fixture: &EnvoyFixture, mode: &str) {
        let case = format!("{mode}: {}", self.origin.name);
        let mut request = match &self.chunks {
            Some(chunks) => post("/v1/completions", &[], &chunks.concat(), Framing::Chunked),
            None => get("/v1/models"),
        };
        for (name, value) in &self.headers {
            request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let answer = fixture.fetch(HttpVersion::Http1, request).await;
        if let Some(refused) = self.refused_status {
            assert_eq!(answer.status.as_u16(), refused, "{case}");
            return;
        }
        assert_eq!(
            (answer.status, answer.header("x-rollora-target")),
            (StatusCode::OK, self.target.as_deref()),
            "{case}"
        );
        let echoed = answer.json();
        assert_eq!(echoed["body"].as_str(), self.expected_body.as_deref(), "{case}");
        // Without a requested model, the header has the target that the generic rule chose.
        let expected_model = self.requested_model.as_deref().or(self.target.as_deref());
        assert_eq!(echoed["headers"]["x-gateway-model-name"].as_str(), expected_model, "{case}");
        for name in ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"] {
            assert_eq!(echoed["headers"][name].as_str(), None, "{case}");
        }
    }
}
