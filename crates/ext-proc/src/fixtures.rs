//! Rules and messages for unit tests.

use crate::{
    processor::{BufferBudget, ObservedMetrics, ProcessorShared, RewriteOptions},
    proto,
};
use bytes::Bytes;
use jiff::Timestamp;
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{active_rules::ActiveRules, guard::PathGuard};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// Returns a fixed time plus `second` seconds.
pub(crate) fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A rewrite of the pool that routes `model` to these targets.
pub(crate) fn rewrite(group: RewriteGroup, name: &str, model: &str, targets: &[(&str, u32)]) -> InferenceModelRewrite {
    let targets: Vec<_> =
        targets.iter().map(|(name, weight)| json!({ "modelRewrite": name, "weight": weight })).collect();
    let rewrite = json!({
        "apiVersion": group.api_version(),
        "kind": "InferenceModelRewrite",
        "metadata": { "name": name, "namespace": "ns", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "poolRef": { "name": "pool" },
            "rules": [{ "matches": [{ "model": { "value": model } }], "targets": targets }],
        },
    });
    serde_json::from_value(rewrite).unwrap()
}

/// Rules of the pool that route `alias` to `alias-v2`.
pub(crate) fn active_rules() -> Arc<ActiveRules> {
    let active_rules = empty_rules();
    active_rules.reset(&[rewrite(RewriteGroup::Current, "r", "alias", &[("alias-v2", 1)])]);
    active_rules
}

pub(crate) fn empty_rules() -> Arc<ActiveRules> {
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]))
}

pub(crate) fn shared(active_rules: &Arc<ActiveRules>) -> Arc<ProcessorShared> {
    shared_with(active_rules, RewriteOptions::default())
}

/// State with the given options, and a buffer limit of 2,000 bytes per request.
pub(crate) fn shared_with(active_rules: &Arc<ActiveRules>, rewrite: RewriteOptions) -> Arc<ProcessorShared> {
    Arc::new(ProcessorShared {
        active_rules: Arc::clone(active_rules),
        guard: PathGuard::Administration,
        rewrite,
        buffer: BufferBudget::new(2_000, 4_000, Duration::from_secs(30)),
        observed: ObservedMetrics::new(&mut Registry::default()),
        max_body: 1000,
        mode_warned: false.into(),
        streams: Gauge::default(),
        clock: || timestamp(9),
    })
}

/// Returns the metric lines of the router with a value other than 0, without histograms.
pub(crate) fn nonzero_metrics(active_rules: &ActiveRules) -> Vec<String> {
    let mut registry = Registry::default();
    active_rules.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let is_relevant = |line: &&str| {
        !line.starts_with('#') && !line.ends_with(" 0") && !line.contains("_bucket") && !line.contains("_seconds")
    };
    text.lines().filter(is_relevant).map(str::to_owned).collect()
}

pub(crate) fn header_map(lines: &[(&str, &str)]) -> proto::HeaderMap {
    let line = |(name, value): &(&str, &str)| proto::HeaderValue {
        key: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
    };
    proto::HeaderMap { headers: lines.iter().map(line).collect() }
}

pub(crate) fn message(event: proto::ProcessingEvent) -> proto::ProcessingRequest {
    proto::ProcessingRequest { event: Some(event), ..proto::ProcessingRequest::default() }
}

/// The first message of a stream: the headers of a chat request with additional `headers`; a body follows.
pub(crate) fn chat(mode: proto::BodySendMode, headers: &[(&str, &str)]) -> proto::ProcessingRequest {
    let head: Vec<_> =
        [(":method", "POST"), (":path", "/v1/chat/completions")].iter().chain(headers).copied().collect();
    first_message(Some(mode.into()), &head, false)
}

/// The first message of a stream, with the mode of request bodies.
pub(crate) fn first_message(
    mode: Option<i32>,
    headers: &[(&str, &str)],
    end_of_stream: bool,
) -> proto::ProcessingRequest {
    let headers = proto::HttpHeaders { headers: Some(header_map(headers)), end_of_stream };
    let config = |request_body_mode| proto::ProtocolConfiguration { request_body_mode, response_body_mode: 0 };
    proto::ProcessingRequest {
        protocol_config: mode.map(config),
        ..message(proto::ProcessingEvent::RequestHeaders(headers))
    }
}

pub(crate) fn body(bytes: &[u8], end_of_stream: bool) -> proto::ProcessingRequest {
    message(proto::ProcessingEvent::RequestBody(proto::HttpBody { body: Bytes::copy_from_slice(bytes), end_of_stream }))
}

pub(crate) fn trailers() -> proto::ProcessingRequest {
    message(proto::ProcessingEvent::RequestTrailers(proto::HttpTrailers {}))
}

pub(crate) fn response_headers(status: &str, headers: &[(&str, &str)]) -> proto::ProcessingRequest {
    let headers: Vec<_> = [(":status", status)].iter().chain(headers).copied().collect();
    message(proto::ProcessingEvent::ResponseHeaders(proto::HttpHeaders {
        headers: Some(header_map(&headers)),
        end_of_stream: false,
    }))
}
