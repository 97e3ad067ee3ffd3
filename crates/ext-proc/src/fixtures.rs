//! Rules and messages for tests.

use crate::{
    processor::{BufferBudget, ObservedMetrics, ProcessorShared, RewriteOptions},
    proto::{
        BodySendMode, HeaderMap, HeaderValue, HttpBody, HttpHeaders, HttpTrailers, ProcessingEvent, ProcessingRequest,
        ProtocolConfiguration,
    },
};
use bytes::Bytes;
use jiff::Timestamp;
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{active_rules::ActiveRules, guard::PathGuard};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// A second of an hour long ago.
pub(crate) fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A rewrite of the pool that sends `model` to these targets.
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

/// Rules of the pool that send `alias` to `alias-v2`.
pub(crate) fn active_rules() -> Arc<ActiveRules> {
    let in_force = empty_rules();
    in_force.reset(&[rewrite(RewriteGroup::Current, "r", "alias", &[("alias-v2", 1)])]);
    in_force
}

/// No rules.
pub(crate) fn empty_rules() -> Arc<ActiveRules> {
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]))
}

pub(crate) fn shared(in_force: &Arc<ActiveRules>) -> Arc<ProcessorShared> {
    shared_with(in_force, RewriteOptions::default())
}

/// Rules that are applied and told so, of which 2,000 bytes of a request may be held.
pub(crate) fn shared_with(in_force: &Arc<ActiveRules>, how: RewriteOptions) -> Arc<ProcessorShared> {
    let in_force = Arc::clone(in_force);
    Arc::new(ProcessorShared {
        active_rules: in_force,
        guard: PathGuard::Administration,
        rewrite: how,
        buffer: BufferBudget::new(2_000, 4_000, Duration::from_secs(30)),
        observed: ObservedMetrics::new(&mut Registry::default()),
        max_body: 1000,
        mode_warned: false.into(),
        streams: Gauge::default(),
        clock: || timestamp(9),
    })
}

/// The lines of the router's metrics that have a value other than 0 and are no buckets.
pub(crate) fn nonzero_metrics(in_force: &ActiveRules) -> Vec<String> {
    let mut registry = Registry::default();
    in_force.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let is_news = |line: &&str| {
        !line.starts_with('#') && !line.ends_with(" 0") && !line.contains("_bucket") && !line.contains("_seconds")
    };
    text.lines().filter(is_news).map(str::to_owned).collect()
}

pub(crate) fn header_map(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| HeaderValue {
        key: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
    };
    HeaderMap { headers: lines.iter().map(line).collect() }
}

pub(crate) fn message(event: ProcessingEvent) -> ProcessingRequest {
    ProcessingRequest { event: Some(event), ..ProcessingRequest::default() }
}

/// The first message of a stream: the headers of a chat request with these besides, and a body behind them.
pub(crate) fn chat(mode: BodySendMode, headers: &[(&str, &str)]) -> ProcessingRequest {
    let head: Vec<_> =
        [(":method", "POST"), (":path", "/v1/chat/completions")].iter().chain(headers).copied().collect();
    first_message(Some(mode.into()), &head, false)
}

/// The first message of a stream.
pub(crate) fn first_message(mode: Option<i32>, headers: &[(&str, &str)], end_of_stream: bool) -> ProcessingRequest {
    let headers = HttpHeaders { headers: Some(header_map(headers)), end_of_stream };
    let config = |request_body_mode| ProtocolConfiguration { request_body_mode, response_body_mode: 0 };
    ProcessingRequest { protocol_config: mode.map(config), ..message(ProcessingEvent::RequestHeaders(headers)) }
}

pub(crate) fn body(bytes: &[u8], end_of_stream: bool) -> ProcessingRequest {
    message(ProcessingEvent::RequestBody(HttpBody { body: Bytes::copy_from_slice(bytes), end_of_stream }))
}

pub(crate) fn trailers() -> ProcessingRequest {
    message(ProcessingEvent::RequestTrailers(HttpTrailers {}))
}

pub(crate) fn response_headers(status: &str, headers: &[(&str, &str)]) -> ProcessingRequest {
    let headers: Vec<_> = [(":status", status)].iter().chain(headers).copied().collect();
    message(ProcessingEvent::ResponseHeaders(HttpHeaders { headers: Some(header_map(&headers)), end_of_stream: false }))
}
