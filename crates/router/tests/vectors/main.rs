//! Test vectors derived from upstream's own tests, with our names (`upstream.json`). `upstream` describes upstream's
//! result where ours differs on purpose. `suite` is the upstream test suite: that of the endpoint picker's rule store,
//! of its reconciler, of its director (weights and bodies), of its request and response handlers, its hermetic tests (a
//! whole server), or that of the body-based router.
//!
//! Covered elsewhere, with the messages of Envoy's protocol: chunks of at most 62,000 bytes, headers and bodies of a
//! GET, routing headers and `clear_route_cache`, token usage in responses (`rollora-ext-proc`, `processor/tests`). Out
//! of scope: endpoint selection (subsets, 503 without an endpoint), priorities, and the echo of a request's own
//! headers.

#![allow(clippy::unwrap_used, reason = "a test reports failures by panicking")]

mod request;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use request::{RequestVector, VectorOrigin};
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    headers,
    refusal::RequestRefusal,
    rules::RewriteKey,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const DRAWS: u32 = 4000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    rules: Vec<RulesVector>,
    weights: Vec<WeightsVector>,
    requests: Vec<RequestVector>,
    responses: Vec<ResponseVector>,
    headers: Vec<HeadersVector>,
}

#[derive(Debug, Deserialize)]
struct RulesVector {
    #[serde(flatten)]
    origin: VectorOrigin,
    steps: Vec<RulesStep>,
    lookups: Vec<(Option<String>, Option<String>)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum RulesStep {
    Apply(RewriteVector),
    Delete(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteVector {
    name: String,
    created_at: i64,
    rules: Vec<RuleVector>,
    #[serde(default)]
    pool: Option<String>,
    #[serde(default)]
    deleted: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleVector {
    #[serde(default)]
    models: Vec<String>,
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct WeightsVector {
    #[serde(flatten)]
    origin: VectorOrigin,
    targets: Vec<(String, Option<i32>)>,
    shares: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct ResponseVector {
    #[serde(flatten)]
    origin: VectorOrigin,
    #[serde(default)]
    generic: Option<String>,
    #[serde(default)]
    event_stream: bool,
    request: String,
    chunks: Vec<String>,
    expected_body: String,
}

#[derive(Debug, Deserialize)]
struct HeadersVector {
    #[serde(flatten)]
    origin: VectorOrigin,
    sent: Vec<String>,
    kept: Vec<String>,
}

fn load_vectors() -> Vectors {
    serde_json::from_str(include_str!("upstream.json")).unwrap()
}

fn empty_rules() -> Arc<ActiveRules> {
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current, RewriteGroup::Legacy]))
}

fn to_rewrite(object: &RewriteVector) -> InferenceModelRewrite {
    let rules: Vec<Value> = object
        .rules
        .iter()
        .map(|rule| {
            let matches: Vec<_> = rule.models.iter().map(|model| json!({ "model": { "value": model } })).collect();
            let targets: Vec<_> = rule.targets.iter().map(|target| json!({ "modelRewrite": target })).collect();
            json!({ "matches": matches, "targets": targets })
        })
        .collect();
    let created_at = Timestamp::from_second(object.created_at).unwrap();
    let mut rewrite = rewrite(&object.name, object.pool.as_deref().unwrap_or("pool"), &rules.into());
    rewrite.metadata.creation_timestamp = Some(created_at);
    rewrite.metadata.deletion_timestamp = object.deleted.then_some(created_at);
    rewrite
}

fn rewrite(name: &str, pool: &str, rules: &Value) -> InferenceModelRewrite {
    serde_json::from_value(json!({
        "apiVersion": RewriteGroup::Current.api_version(), "kind": "InferenceModelRewrite",
        "metadata": { "name": name, "namespace": "ns", "uid": name },
        "spec": { "poolRef": { "name": pool }, "rules": rules },
    }))
    .unwrap()
}

/// Rules that route `chat` to `chat-a` and, if `generic` is given, all other models to `generic`.
fn chat(generic: Option<&str>) -> Arc<ActiveRules> {
    let active_rules = empty_rules();
    let exact = json!([{ "matches": [{ "model": { "value": "chat" } }], "targets": [{ "modelRewrite": "chat-a" }] }]);
    active_rules.apply(&rewrite("chat", "pool", &exact));
    if let Some(generic) = generic {
        active_rules.apply(&rewrite("generic", "pool", &json!([{ "targets": [{ "modelRewrite": generic }] }])));
    }
    active_rules
}

#[test]
fn vector_names_are_unique() {
    let Vectors { rules, weights, requests, responses, headers } = load_vectors();
    let origins: Vec<VectorOrigin> = rules
        .into_iter()
        .map(|it| it.origin)
        .chain(weights.into_iter().map(|it| it.origin))
        .chain(requests.into_iter().map(|it| it.origin))
        .chain(responses.into_iter().map(|it| it.origin))
        .chain(headers.into_iter().map(|it| it.origin))
        .collect();
    let names: BTreeSet<_> = origins.iter().map(|origin| &origin.name).collect();
    assert_eq!(names.len(), origins.len());
    let suites: BTreeSet<_> = origins.iter().map(|origin| origin.suite.as_str()).collect();
    let expected = ["body router", "director", "hermetic", "reconciler", "request", "response", "store"];
    assert_eq!(suites, expected.into());
    assert!(origins.iter().all(|origin| origin.upstream.as_ref().is_none_or(|other| !other.is_empty())));
}

#[test]
fn active_rules_match_upstream_vectors() {
    for RulesVector { origin, steps, lookups } in load_vectors().rules {
        let active_rules = empty_rules();
        for step in &steps {
            match step {
                RulesStep::Apply(rewrite) => active_rules.apply(&to_rewrite(rewrite)),
                RulesStep::Delete(name) => {
                    let namespace = Some("ns".to_owned());
                    active_rules.delete(&RewriteKey { group: RewriteGroup::Current, namespace, name: name.clone() });
                }
            }
        }
        let rules = active_rules.rules();
        for (model, expected) in lookups {
            let found = rules.find(model.as_deref()).map(|rule| rule.targets()[0].name().to_string());
            assert_eq!(found, expected, "{}: {model:?}", origin.name);
        }
    }
}

#[test]
fn target_shares_match_upstream_vectors() {
    for WeightsVector { origin, targets, shares } in load_vectors().weights {
        let active_rules = empty_rules();
        let targets_json: Vec<_> = targets
            .iter()
            .map(|(name, weight)| match weight {
                Some(weight) => json!({ "modelRewrite": name, "weight": weight }),
                None => json!({ "modelRewrite": name }),
            })
            .collect();
        active_rules.apply(&rewrite("r", "pool", &json!([{ "targets": targets_json }])));
        let mut random = StdRng::seed_from_u64(6);
        let mut counts = vec![0_u32; targets.len()];
        for _ in 0..DRAWS {
            let mut exchange = begin(&active_rules, &HeaderMap::new(), true).0;
            drop(exchange.request_body(&Bytes::from_static(b"{\"model\":\"m\"}"), random.random(), NOW));
            let selected = exchange.served_model().unwrap();
            counts[targets.iter().position(|(name, _)| name == selected).unwrap()] += 1;
        }
        for (count, share) in counts.iter().zip(&shares) {
            // Upstream allows a deviation of a fifth; five standard deviations are less than a twentieth here.
            let deviation = (share * (1.0 - share) / f64::from(DRAWS)).sqrt();
            let observed = f64::from(*count) / f64::from(DRAWS);
            assert!((observed - share).abs() <= 5.0 * deviation, "{}: {observed} instead of {share}", origin.name);
        }
    }
}

fn begin(active_rules: &Arc<ActiveRules>, headers: &HeaderMap, has_body: bool) -> (Exchange, HeadAction) {
    let head = RequestHead { path_and_query: "/v1/completions", headers, has_body };
    Exchange::begin(active_rules, PathGuard::Administration, &head, NOW)
}

/// Sends a body in these chunks. Returns the forwarded bytes or the refusal.
fn send_chunks(exchange: &mut Exchange, chunks: &[String]) -> Result<Bytes, RequestRefusal> {
    let mut out = Vec::new();
    for chunk in chunks {
        exchange.request_chunk(&Bytes::copy_from_slice(chunk.as_bytes()), 0, NOW, &mut out)?;
    }
    exchange.request_end(&mut out)?;
    Ok(out.concat().into())
}

fn send_whole(exchange: &mut Exchange, chunks: &[String]) -> Result<Bytes, RequestRefusal> {
    let body = Bytes::from(chunks.concat());
    match exchange.request_body(&body, 0, NOW) {
        BodyAction::Forward => Ok(body),
        BodyAction::Replace(spliced) => Ok(spliced.into_bytes()),
        BodyAction::Refuse(refusal) => Err(refusal),
    }
}

#[test]
fn requests_match_upstream_vectors() {
    for vector in load_vectors().requests {
        let name = &vector.origin.name;
        let active_rules = chat(vector.generic.as_deref());
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        for (header, value) in &vector.headers {
            headers.insert(HeaderName::try_from(header).unwrap(), HeaderValue::try_from(value).unwrap());
        }
        headers::remove_internal(&mut headers);
        for read in [send_chunks, send_whole] {
            let (mut exchange, action) = begin(&active_rules, &headers, vector.chunks.is_some());
            let forwarded = match &vector.chunks {
                Some(chunks) if action == HeadAction::ReadBody => read(&mut exchange, chunks),
                other => {
                    assert_eq!((&action, other), (&HeadAction::Forward, &None), "{name}");
                    Ok(Bytes::new())
                }
            };
            let expected = vector.expected_body.as_deref().ok_or(vector.refused_status.unwrap_or_default());
            let forwarded = forwarded.as_ref().map(|body| std::str::from_utf8(body).unwrap());
            assert_eq!(forwarded.map_err(|refusal| refusal.status().as_u16()), expected, "{name}");
            if vector.refused_status.is_some() {
                continue;
            }
            let requested = exchange.requested_model().filter(|requested| !requested.is_empty());
            assert_eq!(requested, vector.requested_model.as_deref(), "{name}");
            let target = exchange.target_header().map(|target| target.to_str().unwrap());
            assert_eq!(target, vector.target.as_deref(), "{name}");
        }
    }
}

#[test]
fn responses_match_upstream_vectors() {
    for ResponseVector { origin, generic, event_stream, request, chunks, expected_body } in load_vectors().responses {
        let (mut exchange, _) = begin(&chat(generic.as_deref()), &HeaderMap::new(), true);
        send_chunks(&mut exchange, &[request]).unwrap();
        let content_type = if event_stream { "text/event-stream" } else { "application/json" };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let mut out = Vec::new();
        match exchange.restorer(&headers) {
            Some(mut restorer) => {
                for chunk in &chunks {
                    restorer.push(&Bytes::copy_from_slice(chunk.as_bytes()), &mut out);
                }
                restorer.finish(&mut out);
            }
            None => out.push(chunks.concat().into()),
        }
        assert_eq!(String::from_utf8(out.concat()).unwrap(), expected_body, "{}", origin.name);
    }
}

#[test]
fn removed_headers_match_upstream_vectors() {
    for HeadersVector { origin, sent, kept } in load_vectors().headers {
        let names = |names: &[String]| -> HashSet<HeaderName> {
            names.iter().map(|name| HeaderName::try_from(name).unwrap()).collect()
        };
        let mut headers: HeaderMap =
            names(&sent).into_iter().map(|name| (name, HeaderValue::from_static("x"))).collect();
        headers::remove_internal(&mut headers);
        assert_eq!(headers.keys().cloned().collect::<HashSet<_>>(), names(&kept), "{}", origin.name);
    }
}
