//! What upstream's own tests state, in our words and with our names (`upstream.json`), and where ours is another
//! outcome, what upstream's is. `of` says which of upstream's tests state it: those of the picker's store of rules, of
//! its reconciler, of its director (weights and bodies), of its request and response handlers, its hermetic ones (a
//! whole server), and those of the body-based router.
//!
//! Stated elsewhere, where the messages of Envoy's protocol are: pieces of at most 62,000 bytes, headers and bodies of
//! a GET, routing headers and `clear_route_cache`, the tokens that an answer says (`rollora-ext-proc`,
//! `processor/tests`). Not ours: the choice of an endpoint (subsets, 503 without one), priorities, and the echo of a
//! request's own headers.

#![allow(clippy::unwrap_used, reason = "a test says by a panic what is wrong")]

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
    let made = Timestamp::from_second(object.created_at).unwrap();
    let mut rewrite = rewrite(&object.name, object.pool.as_deref().unwrap_or("pool"), &rules.into());
    rewrite.metadata.creation_timestamp = Some(made);
    rewrite.metadata.deletion_timestamp = object.deleted.then_some(made);
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

/// `chat` goes to `chat-a`, and where a generic target is named, everybody else there.
fn chat(generic: Option<&str>) -> Arc<ActiveRules> {
    let in_force = empty_rules();
    let exact = json!([{ "matches": [{ "model": { "value": "chat" } }], "targets": [{ "modelRewrite": "chat-a" }] }]);
    in_force.apply(&rewrite("chat", "pool", &exact));
    if let Some(generic) = generic {
        in_force.apply(&rewrite("generic", "pool", &json!([{ "targets": [{ "modelRewrite": generic }] }])));
    }
    in_force
}

#[test]
fn every_vector_has_a_name_of_its_own() {
    let Vectors { rules, weights, requests, responses: answers, headers } = load_vectors();
    let origins: Vec<VectorOrigin> = rules
        .into_iter()
        .map(|it| it.origin)
        .chain(weights.into_iter().map(|it| it.origin))
        .chain(requests.into_iter().map(|it| it.origin))
        .chain(answers.into_iter().map(|it| it.origin))
        .chain(headers.into_iter().map(|it| it.origin))
        .collect();
    let names: BTreeSet<_> = origins.iter().map(|origin| &origin.name).collect();
    assert_eq!(names.len(), origins.len());
    let of: BTreeSet<_> = origins.iter().map(|origin| origin.suite.as_str()).collect();
    let expected = ["body router", "director", "hermetic", "reconciler", "request", "response", "store"];
    assert_eq!(of, expected.into());
    assert!(origins.iter().all(|origin| origin.upstream.as_ref().is_none_or(|other| !other.is_empty())));
}

#[test]
fn the_rule_in_force_is_that_of_upstreams_vectors() {
    for RulesVector { origin, steps, lookups: finds } in load_vectors().rules {
        let in_force = empty_rules();
        for step in &steps {
            match step {
                RulesStep::Apply(written) => in_force.apply(&to_rewrite(written)),
                RulesStep::Delete(name) => {
                    let namespace = Some("ns".to_owned());
                    in_force.delete(&RewriteKey { group: RewriteGroup::Current, namespace, name: name.clone() });
                }
            }
        }
        let rules = in_force.rules();
        for (model, expected) in finds {
            let found = rules.find(model.as_deref()).map(|rule| rule.targets()[0].name().to_string());
            assert_eq!(found, expected, "{}: {model:?}", origin.name);
        }
    }
}

#[test]
fn targets_are_chosen_by_the_shares_of_upstreams_vectors() {
    for WeightsVector { origin, targets, shares } in load_vectors().weights {
        let in_force = empty_rules();
        let targets_json: Vec<_> = targets
            .iter()
            .map(|(name, weight)| match weight {
                Some(weight) => json!({ "modelRewrite": name, "weight": weight }),
                None => json!({ "modelRewrite": name }),
            })
            .collect();
        in_force.apply(&rewrite("r", "pool", &json!([{ "targets": targets_json }])));
        let mut random = StdRng::seed_from_u64(6);
        let mut counts = vec![0_u32; targets.len()];
        for _ in 0..DRAWS {
            let mut exchange = begin(&in_force, &HeaderMap::new(), true).0;
            drop(exchange.request_body(&Bytes::from_static(b"{\"model\":\"m\"}"), random.random(), NOW));
            let chosen = exchange.served_model().unwrap();
            counts[targets.iter().position(|(name, _)| name == chosen).unwrap()] += 1;
        }
        for (count, share) in counts.iter().zip(&shares) {
            // Upstream allows a fifth; five standard deviations are less than a twentieth here.
            let deviation = (share * (1.0 - share) / f64::from(DRAWS)).sqrt();
            let seen = f64::from(*count) / f64::from(DRAWS);
            assert!((seen - share).abs() <= 5.0 * deviation, "{}: {seen} instead of {share}", origin.name);
        }
    }
}

fn begin(in_force: &Arc<ActiveRules>, headers: &HeaderMap, has_body: bool) -> (Exchange, HeadAction) {
    let head = RequestHead { path_and_query: "/v1/completions", headers, has_body };
    Exchange::begin(in_force, PathGuard::Administration, &head, NOW)
}

/// What goes on of a body that comes in these pieces.
fn send_chunks(exchange: &mut Exchange, pieces: &[String]) -> Result<Bytes, RequestRefusal> {
    let mut out = Vec::new();
    for piece in pieces {
        exchange.request_chunk(&Bytes::copy_from_slice(piece.as_bytes()), 0, NOW, &mut out)?;
    }
    exchange.request_end(&mut out)?;
    Ok(out.concat().into())
}

fn send_whole(exchange: &mut Exchange, pieces: &[String]) -> Result<Bytes, RequestRefusal> {
    let body = Bytes::from(pieces.concat());
    match exchange.request_body(&body, 0, NOW) {
        BodyAction::Forward => Ok(body),
        BodyAction::Replace(spliced) => Ok(spliced.into_bytes()),
        BodyAction::Refuse(refusal) => Err(refusal),
    }
}

#[test]
fn requests_become_what_upstreams_vectors_say() {
    for vector in load_vectors().requests {
        let name = &vector.origin.name;
        let in_force = chat(vector.generic.as_deref());
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        for (header, value) in &vector.headers {
            headers.insert(HeaderName::try_from(header).unwrap(), HeaderValue::try_from(value).unwrap());
        }
        headers::remove_internal(&mut headers);
        for read in [send_chunks, send_whole] {
            let (mut exchange, action) = begin(&in_force, &headers, vector.chunks.is_some());
            let gone_on = match &vector.chunks {
                Some(pieces) if action == HeadAction::ReadBody => read(&mut exchange, pieces),
                other => {
                    assert_eq!((&action, other), (&HeadAction::Forward, &None), "{name}");
                    Ok(Bytes::new())
                }
            };
            let expected = vector.expected_body.as_deref().ok_or(vector.refused_status.unwrap_or_default());
            let gone_on = gone_on.as_ref().map(|body| std::str::from_utf8(body).unwrap());
            assert_eq!(gone_on.map_err(|refusal| refusal.status().as_u16()), expected, "{name}");
            if vector.refused_status.is_some() {
                continue;
            }
            let asked = exchange.requested_model().filter(|asked| !asked.is_empty());
            assert_eq!(asked, vector.requested_model.as_deref(), "{name}");
            let target = exchange.target_header().map(|target| target.to_str().unwrap());
            assert_eq!(target, vector.target.as_deref(), "{name}");
        }
    }
}

#[test]
fn answers_become_what_upstreams_vectors_say() {
    for ResponseVector { origin, generic, event_stream: events, request, chunks: pieces, expected_body: becomes } in
        load_vectors().responses
    {
        let (mut exchange, _) = begin(&chat(generic.as_deref()), &HeaderMap::new(), true);
        send_chunks(&mut exchange, &[request]).unwrap();
        let kind = if events { "text/event-stream" } else { "application/json" };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let mut out = Vec::new();
        match exchange.restorer(&headers) {
            Some(mut restorer) => {
                for piece in &pieces {
                    restorer.push(&Bytes::copy_from_slice(piece.as_bytes()), &mut out);
                }
                restorer.finish(&mut out);
            }
            None => out.push(pieces.concat().into()),
        }
        assert_eq!(String::from_utf8(out.concat()).unwrap(), becomes, "{}", origin.name);
    }
}

#[test]
fn headers_are_kept_from_whom_upstreams_vectors_keep_them() {
    for HeadersVector { origin, sent, kept: stay } in load_vectors().headers {
        let names = |names: &[String]| -> HashSet<HeaderName> {
            names.iter().map(|name| HeaderName::try_from(name).unwrap()).collect()
        };
        let mut headers: HeaderMap =
            names(&sent).into_iter().map(|name| (name, HeaderValue::from_static("x"))).collect();
        headers::remove_internal(&mut headers);
        assert_eq!(headers.keys().cloned().collect::<HashSet<_>>(), names(&stay), "{}", origin.name);
    }
}
