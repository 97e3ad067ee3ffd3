//! Routing of inference requests, without any I/O: which rule applies and which target it selects, how `model` is
//! replaced in the body, which paths are closed, and what is counted.
//!
//! A proxy keeps one [`active_rules::ActiveRules`] and creates one [`exchange::Exchange`] per request. Neither uses
//! sockets, tasks, files or clocks: the time and random numbers are arguments, so that any proxy can use them.
//! `examples/proxy.rs` is a proxy on threads and sockets of the standard library.
//!
//! ```
//! use bytes::Bytes;
//! use http::{HeaderMap, StatusCode};
//! use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
//! use rollora_router::{
//!     active_rules::ActiveRules,
//!     exchange::{BodyAction, Exchange, HeadAction, RequestHead},
//!     guard::PathGuard,
//!     headers,
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
//! let active_rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]));
//! active_rules.reset(&[rewrite]);
//!
//! // One request. A program passes its clock and random numbers instead of the constants.
//! let mut request_headers = HeaderMap::new();
//! headers::remove_internal(&mut request_headers);
//! let head = RequestHead { path_and_query: "/v1/chat/completions", headers: &request_headers, has_body: true };
//! let now = "2026-01-01T00:00:00Z".parse()?;
//! let (mut exchange, action) = Exchange::begin(&active_rules, PathGuard::Strict, &head, now);
//! assert_eq!(action, HeadAction::ReadBody);
//!
//! let body = Bytes::from_static(br#"{"messages": [], "model": "small-segment-lora"}"#);
//! let BodyAction::Replace(spliced) = exchange.request_body(&body, u64::MAX, now) else {
//!     panic!("a rule matches");
//! };
//! assert_eq!(&spliced.into_bytes()[..], br#"{"messages": [], "model": "small-segment-lora-v2"}"#);
//! assert_eq!(exchange.served_model(), Some("small-segment-lora-v2"));
//!
//! let mut response_headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "application/json".parse()?)]);
//! let target = exchange.response_head(StatusCode::OK, "2026-01-01T00:00:01Z".parse()?);
//! headers::set_target_header(&mut response_headers, target.as_ref());
//! assert_eq!(response_headers["x-rollora-target"], "small-segment-lora-v2");
//!
//! // Restores the name that the client requested, chunk by chunk as the response arrives.
//! let mut restorer = exchange.restorer(&response_headers).expect("JSON, and a model that was rewritten");
//! let mut out = Vec::new();
//! restorer.push(&Bytes::from_static(br#"{"model": "small-segment-"#), &mut out);
//! restorer.push(&Bytes::from_static(br#"lora-v2", "choices": []}"#), &mut out);
//! restorer.finish(&mut out);
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
