//! Fuzz harnesses: functions of arbitrary bytes that panic if a guarantee of the library is violated. `main.rs` runs
//! them on random input, `cargo xtask fuzz` with libFuzzer.
#![allow(dead_code, reason = "each fuzz target uses one of them")]
#![allow(clippy::unwrap_used, reason = "an unexpected failure is a finding")]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use jiff::Timestamp;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    json::{self, MAX_NAME_LENGTH, ScanResult},
    refusal::RequestRefusal,
    restore::Restorer,
};
use std::sync::{Arc, LazyLock};

/// The first rule set routes `m` to `m-v1` or `m-v2`; the second one also routes all other models to `base`.
static RULE_SETS: LazyLock<[Arc<ActiveRules>; 2]> = LazyLock::new(|| {
    let rewrite = |name: &str, spec: serde_json::Value| -> InferenceModelRewrite {
        let metadata = serde_json::json!({ "name": name, "namespace": "ns", "uid": name });
        serde_json::from_value(serde_json::json!({
            "apiVersion": RewriteGroup::Current.api_version(), "kind": "InferenceModelRewrite",
            "metadata": metadata, "spec": spec,
        }))
        .unwrap()
    };
    let exact = rewrite(
        "exact",
        serde_json::json!({ "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": "m" } }],
            "targets": [{ "modelRewrite": "m-v1", "weight": 1 }, { "modelRewrite": "m-v2", "weight": 1 }],
        }] }),
    );
    let any = rewrite(
        "any",
        serde_json::json!({ "poolRef": { "name": "pool" }, "rules": [{ "targets": [{ "modelRewrite": "base" }] }] }),
    );
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    [vec![exact.clone()], vec![exact, any]].map(|rewrites| {
        let active_rules = Arc::new(ActiveRules::new(pool.clone(), &[RewriteGroup::Current]));
        active_rules.reset(&rewrites);
        active_rules
    })
});

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Input bytes, consumed as choices.
struct ByteSource<'a>(&'a [u8]);

impl<'a> ByteSource<'a> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Tokens of bodies and responses: byte by byte a fuzzer hardly ever assembles a second `model`.
const TOKENS: [&str; 30] = [
    "{\"model\":\"m\"",
    "{\"model\":\"m-v1\"",
    "{\"model\":\"other\"",
    ",\"model\":\"m\"",
    ",\"mod\\u0065l\":\"m-v1\"",
    "}",
    "{",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\"model\":",
    "\"a\":",
    "\"m\"",
    "\"m-v1\"",
    "null",
    "1",
    " ",
    "data: ",
    "data:",
    "\n",
    "\r",
    "\r\n",
    "event: x",
    "\u{feff}",
    "\0",
    "\"\\ud800\"",
    "\"\\u006d\"",
];

/// Splits the input into chunks. The first bytes select a repeated pattern of chunk lengths, and whether each following
/// byte stands for one of [`TOKENS`]. Returns the chunks and the whole body.
fn split_input(bytes: &[u8]) -> (Vec<Bytes>, Vec<u8>) {
    let mut choices = ByteSource(bytes);
    let pattern = [choices.next(), choices.next(), choices.next()].map(|byte| usize::from(byte % 32) + 1);
    let as_tokens = choices.next() & 1 > 0;
    let decode = |byte: &u8| match TOKENS.get(usize::from(*byte)) {
        Some(token) if as_tokens => token.as_bytes().to_vec(),
        _ => vec![*byte],
    };
    let body: Vec<u8> = choices.0.iter().flat_map(decode).collect();
    let mut rest = ByteSource(&body);
    let mut chunks = Vec::new();
    for length in pattern.into_iter().cycle() {
        let chunk = rest.take(length);
        if chunk.is_empty() {
            break;
        }
        chunks.push(Bytes::copy_from_slice(chunk));
    }
    (chunks, body)
}

fn begin(active_rules: &Arc<ActiveRules>) -> Exchange {
    let headers = HeaderMap::new();
    let head = RequestHead { path_and_query: "/v1/completions", headers: &headers, has_body: true };
    let (exchange, action) = Exchange::begin(active_rules, PathGuard::Strict, &head, NOW);
    assert_eq!(action, HeadAction::ReadBody);
    exchange
}

fn parse_model(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value.get("model")?.as_str()?.to_owned())
}

/// Reads a body as a whole and in chunks: both give the same result, a server sees no model but the decided one, and
/// the bytes around it stay.
pub(crate) fn splice(bytes: &[u8]) {
    let (chunks, body) = split_input(bytes);
    let body = &body[..];
    let random = if body.len().is_multiple_of(2) { 0 } else { u64::MAX };
    for active_rules in &*RULE_SETS {
        let body = Bytes::copy_from_slice(body);
        let mut as_whole = begin(active_rules);
        let whole = match as_whole.request_body(&body, random, NOW) {
            BodyAction::Forward => Ok(body.clone()),
            BodyAction::Replace(spliced) => {
                let [before, name, after] = spliced.parts.clone();
                assert!(body.starts_with(&before) && body.ends_with(&after));
                assert!(before.len() + after.len() <= body.len() && !name.is_empty());
                let decided = as_whole.served_model().unwrap();
                // serde accepts less than servers do, and what it accepts all of them read alike.
                let parsed = parse_model(&spliced.clone().into_bytes());
                assert!(parsed.is_none_or(|parsed| parsed == decided));
                Ok(spliced.into_bytes())
            }
            BodyAction::Refuse(refusal) => Err(refusal),
        };
        if let Ok(forwarded) = &whole
            && as_whole.target_header().is_none()
            && let Some(parsed) = parse_model(forwarded)
        {
            assert!(parsed != "m" && as_whole.served_model() == Some(&*parsed));
        }
        let mut in_chunks = begin(active_rules);
        let mut out = Vec::new();
        let result = chunks.iter().try_for_each(|chunk| {
            in_chunks.request_chunk(chunk, random, NOW, &mut out)?;
            let forwarded: usize = out.iter().map(Bytes::len).sum();
            assert!(forwarded <= body.len() + MAX_NAME_LENGTH);
            Ok::<(), RequestRefusal>(())
        });
        let result = result.and_then(|()| in_chunks.request_end(&mut out)).map(|()| Bytes::from(out.concat()));
        assert_eq!(result, whole);
        assert_eq!(in_chunks.served_model(), as_whole.served_model());
    }
    if let ScanResult::Found(found) = json::scan(body)
        && let Some(parsed) = parse_model(body)
    {
        assert_eq!(found.location.decode_name(body).as_deref(), Some(&*parsed));
    }
}

/// Restores a response as a whole and in chunks: both give the same result, and nothing but the name changes.
pub(crate) fn restore(bytes: &[u8]) {
    let (chunks, response) = split_input(bytes);
    let response = &response[..];
    for content_type in ["application/json", "text/event-stream"] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let restored = |chunks: &[Bytes]| {
            let mut restorer = Restorer::new(&headers, "m-v1", "m").unwrap();
            let mut out = Vec::new();
            let (mut received, mut names) = (0, 0);
            for chunk in chunks {
                received += chunk.len();
                restorer.push(chunk, &mut out);
                names = out.iter().filter(|slice| **slice == "\"m\"").count();
                let forwarded: usize = out.iter().map(Bytes::len).sum();
                // Each restored name is shorter, at most by the length of its longest spelling.
                assert!(forwarded + names * 27 + MAX_NAME_LENGTH + 32 >= received);
            }
            restorer.finish(&mut out);
            (out.concat(), names)
        };
        let whole = restored(&[Bytes::copy_from_slice(response)]);
        assert_eq!(restored(&chunks).0, whole.0);
        // If no name was restored, nothing has changed; otherwise a parser reads the restored name.
        assert!(whole.1 > 0 || whole.0 == response);
        if content_type == "application/json"
            && let Some(before) = parse_model(response)
        {
            let unique = matches!(json::scan(response), ScanResult::Found(_));
            let expected = if before == "m-v1" { "m" } else { &before };
            assert!(!unique || parse_model(&whole.0).unwrap() == expected);
        }
    }
}

/// Calls what a proxy can call, in any order: nothing panics, is counted twice or stays in flight.
pub(crate) fn exchange(bytes: &[u8]) {
    const PATHS: [&str; 5] = ["/v1/chat/completions", "/v1/load_lora_adapter", "/v1/files", "", "/v1//%6d"];
    const BODIES: [&str; 8] = [
        r#"{"model":"m"}"#,
        r#"{"model":"other"}"#,
        r#"{"model":"m","model":"x"}"#,
        r#"{"model":"m","#,
        "{",
        "}",
        r#""model":"#,
        r#""m-v1""#,
    ];
    let mut choices = ByteSource(bytes);
    let first = choices.next();
    let active_rules = &RULE_SETS[usize::from(first & 1)];
    let mut headers = HeaderMap::new();
    for (bit, name, value) in [
        (2, "content-type", "application/json"),
        (4, "content-encoding", "gzip"),
        (8, "content-type", "multipart/form-data"),
    ] {
        if first & bit > 0 {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    let path_and_query = PATHS[usize::from(choices.next()) % PATHS.len()];
    let guard = [PathGuard::Off, PathGuard::Administration, PathGuard::Strict][usize::from(choices.next()) % 3];
    let head = RequestHead { path_and_query, headers: &headers, has_body: first & 16 > 0 };
    let (mut exchange, _) = Exchange::begin(active_rules, guard, &head, NOW);
    let mut out = Vec::new();
    while !choices.0.is_empty() {
        let event = choices.next();
        let index = usize::from(event >> 4);
        let body = match BODIES.get(index) {
            Some(body) => Bytes::from_static(body.as_bytes()),
            None => Bytes::copy_from_slice(choices.take(index)),
        };
        let random = u64::from(event) << 56;
        match event & 15 {
            0..=4 => drop(exchange.request_chunk(&body, random, NOW, &mut out)),
            5 => drop(exchange.request_body(&body, random, NOW)),
            6 | 7 => drop(exchange.request_end(&mut out)),
            8 => drop(exchange.route_by_model(["m", "other", ""][index % 3], random, NOW)),
            9 => exchange.skip_body(),
            10 => exchange.preserve_body(),
            11 => drop(exchange.refuse(RequestRefusal::MalformedBody)),
            12 => drop(exchange.response_head(StatusCode::from_u16(100 + u16::from(event) * 3).unwrap(), NOW)),
            13 => {
                let json = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
                if let Some(mut restorer) = exchange.restorer(&json) {
                    restorer.push(&body, &mut out);
                    restorer.finish(&mut out);
                }
            }
            14 => drop(exchange.requested_model()),
            _ => drop((exchange.awaits_model(), exchange.has_buffered())),
        }
        let target = exchange.target_header().map(|target| target.as_bytes().to_vec());
        assert!(target.is_none_or(|target| exchange.served_model().is_some_and(|model| model.as_bytes() == target)));
    }
    if first & 32 > 0 {
        exchange.end(NOW);
    } else {
        drop(exchange);
    }
    let mut registry = prometheus_client::registry::Registry::default();
    active_rules.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let in_flight = text.lines().filter(|line| line.contains("in_flight") && !line.starts_with('#'));
    assert!(in_flight.clone().all(|line| line.ends_with(" 0")), "{:?}", in_flight.collect::<Vec<_>>());
}
