//! What happens to a request, without any network: which rule and target it gets, where `model` stands in its
//! body and how it is replaced, which paths are closed, and what is counted.
//!
//! A proxy keeps one [`in_force::InForce`] and makes one [`exchange::Exchange`] per request. Neither knows
//! sockets, tasks, files or clocks: time and chance come in as arguments, so any proxy can use them. `examples/proxy.rs`
//! is one, on threads and sockets of the standard library.
//!
//! ```
//! use bytes::Bytes;
//! use http::{HeaderMap, StatusCode};
//! use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
//! use rollora_router::{
//!     exchange::{BodyAction, Exchange, HeadAction, RequestHead},
//!     guard::Guard,
//!     headers,
//!     in_force::InForce,
//! };
//! use std::sync::Arc;
//!
//! let rewrite: InferenceModelRewrite = serde_json::from_str(r#"{
//!     "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
//!     "metadata": { "name": "small-segment-lora", "uid": "0b1d" },
//!     "spec": { "poolRef": { "name": "pool" }, "rules": [{
//!         "matches": [{ "model": { "value": "small-segment-lora" } }],
//!         "targets": [
//!             { "modelRewrite": "small-segment-lora-v1", "weight": 90 },
//!             { "modelRewrite": "small-segment-lora-v2", "weight": 10 }
//!         ]
//!     }] }
//! }"#)?;
//! let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
//! let in_force = Arc::new(InForce::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]));
//! in_force.reset(&[rewrite]);
//!
//! // One request. A program's clock and random numbers stand where the constants are.
//! let mut request_headers = HeaderMap::new();
//! headers::remove_internal(&mut request_headers);
//! let head = RequestHead { target: "/v1/chat/completions", headers: &request_headers, has_body: true };
//! let (mut exchange, action) = Exchange::begin(&in_force, Guard::Strict, &head, "2026-01-01T00:00:00Z".parse()?);
//! assert_eq!(action, HeadAction::ReadBody);
//!
//! let body = Bytes::from_static(br#"{"messages": [], "model": "small-segment-lora"}"#);
//! let BodyAction::Replace(spliced) = exchange.request_body(&body, u64::MAX, "2026-01-01T00:00:00Z".parse()?) else {
//!     panic!("a rule matches");
//! };
//! assert_eq!(&spliced.into_bytes()[..], br#"{"messages": [], "model": "small-segment-lora-v2"}"#);
//! assert_eq!(exchange.model(), Some("small-segment-lora-v2"));
//!
//! let mut response_headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "application/json".parse()?)]);
//! let target = exchange.response_head(StatusCode::OK, "2026-01-01T00:00:01Z".parse()?);
//! headers::set_target(&mut response_headers, target.as_ref());
//! assert_eq!(response_headers["x-rollora-target"], "small-segment-lora-v2");
//!
//! // Where clients are to see the name they asked for: as the answer comes, in pieces of any length.
//! let mut restorer = exchange.restorer(&response_headers).expect("JSON, of another name than was asked for");
//! let mut out = Vec::new();
//! restorer.piece(&Bytes::from_static(br#"{"model": "small-segment-"#), &mut out);
//! restorer.piece(&Bytes::from_static(br#"lora-v2", "choices": []}"#), &mut out);
//! restorer.end(&mut out);
//! assert_eq!(out.concat(), br#"{"model": "small-segment-lora", "choices": []}"#);
//! exchange.end("2026-01-01T00:00:09Z".parse()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

pub mod active_rules;
pub mod exchange;
#[cfg(test)]
mod fixtures;
pub mod guard;
pub mod headers;
pub mod json;
mod metrics;
pub mod refusal;
pub mod restore;
pub mod route;
pub mod rules;
mod usage;
