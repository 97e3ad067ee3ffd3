//! Harnesses: functions of any bytes, which fail where a promise of the library is broken. `main.rs` runs them
//! with bytes by chance, `cargo xtask fuzz` with a fuzzer that looks for new paths.
#![allow(dead_code, reason = "a target of the fuzzer uses one of them")]
#![allow(clippy::unwrap_used, reason = "what cannot fail here is a finding where it does")]

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

/// What rules send to whom: `m` to `m-v1` or `m-v2`, and in the second set everybody else to `base`.
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
        let in_force = Arc::new(ActiveRules::new(pool.clone(), &[RewriteGroup::Current]));
        in_force.reset(&rewrites);
        in_force
    })
});

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Bytes that decide how something goes.
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

/// What bodies and answers are made of. A fuzzer that has to find these letter by letter finds no second `model`.
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

/// The first bytes say where the rest is cut, by a pattern of lengths that goes round, and whether it is written in
/// [`WORDS`], one a byte.
fn split_input(bytes: &[u8]) -> (Vec<Bytes>, Vec<u8>) {
    let mut choices = ByteSource(bytes);
    let pattern = [choices.next(), choices.next(), choices.next()].map(|byte| usize::from(byte % 32) + 1);
    let in_words = choices.next() & 1 > 0;
    let word = |byte: &u8| match TOKENS.get(usize::from(*byte)) {
        Some(word) if in_words => word.as_bytes().to_vec(),
        _ => vec![*byte],
    };
    let body: Vec<u8> = choices.0.iter().flat_map(word).collect();
    let mut rest = ByteSource(&body);
    let mut pieces = Vec::new();
    for length in pattern.into_iter().cycle() {
        let piece = rest.take(length);
        if piece.is_empty() {
            break;
        }
        pieces.push(Bytes::copy_from_slice(piece));
    }
    (pieces, body)
}

fn begin(in_force: &Arc<ActiveRules>) -> Exchange {
    let headers = HeaderMap::new();
    let head = RequestHead { path_and_query: "/v1/completions", headers: &headers, has_body: true };
    let (exchange, action) = Exchange::begin(in_force, PathGuard::Strict, &head, NOW);
    assert_eq!(action, HeadAction::ReadBody);
    exchange
}

fn parse_model(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value.get("model")?.as_str()?.to_owned())
}

/// A body, whole and in pieces: the same goes on, no server sees another model than the one decided, and the bytes
/// around it stay.
pub(crate) fn splice(bytes: &[u8]) {
    let (pieces, body) = split_input(bytes);
    let body = &body[..];
    let random = if body.len().is_multiple_of(2) { 0 } else { u64::MAX };
    for in_force in &*RULE_SETS {
        let body = Bytes::copy_from_slice(body);
        let mut at_once = begin(in_force);
        let whole = match at_once.request_body(&body, random, NOW) {
            BodyAction::Forward => Ok(body.clone()),
            BodyAction::Replace(spliced) => {
                let [before, name, behind] = spliced.parts.clone();
                assert!(body.starts_with(&before) && body.ends_with(&behind));
                assert!(before.len() + behind.len() <= body.len() && !name.is_empty());
                let decided = at_once.served_model().unwrap();
                // serde reads less than other servers, and what it reads is read alike everywhere.
                let seen = parse_model(&spliced.clone().into_bytes());
                assert!(seen.is_none_or(|seen| seen == decided));
                Ok(spliced.into_bytes())
            }
            BodyAction::Refuse(refusal) => Err(refusal),
        };
        if let Ok(passed) = &whole
            && at_once.target_header().is_none()
            && let Some(seen) = parse_model(passed)
        {
            assert!(seen != "m" && at_once.served_model() == Some(&*seen));
        }
        let mut in_pieces = begin(in_force);
        let mut out = Vec::new();
        let taken = pieces.iter().try_for_each(|piece| {
            in_pieces.request_chunk(piece, random, NOW, &mut out)?;
            let passed: usize = out.iter().map(Bytes::len).sum();
            assert!(passed <= body.len() + MAX_NAME_LENGTH);
            Ok::<(), RequestRefusal>(())
        });
        let taken = taken.and_then(|()| in_pieces.request_end(&mut out)).map(|()| Bytes::from(out.concat()));
        assert_eq!(taken, whole);
        assert_eq!(in_pieces.served_model(), at_once.served_model());
    }
    if let ScanResult::Found(found) = json::scan(body)
        && let Some(seen) = parse_model(body)
    {
        assert_eq!(found.location.decode_name(body).as_deref(), Some(&*seen));
    }
}

/// An answer, whole and in pieces: the same goes on, and with the client's name put back by hand nothing else changes.
pub(crate) fn restore(bytes: &[u8]) {
    let (pieces, answer) = split_input(bytes);
    let answer = &answer[..];
    for kind in ["application/json", "text/event-stream"] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let restored = |pieces: &[Bytes]| {
            let mut restorer = Restorer::new(&headers, "m-v1", "m").unwrap();
            let mut out = Vec::new();
            let (mut came, mut names) = (0, 0);
            for piece in pieces {
                came += piece.len();
                restorer.push(piece, &mut out);
                names = out.iter().filter(|slice| **slice == "\"m\"").count();
                let passed: usize = out.iter().map(Bytes::len).sum();
                // Each name is shorter now, at most by the longest way to write it.
                assert!(passed + names * 27 + MAX_NAME_LENGTH + 32 >= came);
            }
            restorer.finish(&mut out);
            (out.concat(), names)
        };
        let whole = restored(&[Bytes::copy_from_slice(answer)]);
        assert_eq!(restored(&pieces).0, whole.0);
        // Where nothing was put in, nothing has changed; and what was put in is what a reader sees.
        assert!(whole.1 > 0 || whole.0 == answer);
        if kind == "application/json"
            && let Some(before) = parse_model(answer)
        {
            let unique = matches!(json::scan(answer), ScanResult::Found(_));
            let expected = if before == "m-v1" { "m" } else { &before };
            assert!(!unique || parse_model(&whole.0).unwrap() == expected);
        }
    }
}

/// What a proxy may call, in any order: nothing panics, nothing is counted twice or stays in flight.
pub(crate) fn exchange(bytes: &[u8]) {
    const TARGETS: [&str; 5] = ["/v1/chat/completions", "/v1/load_lora_adapter", "/v1/files", "", "/v1//%6d"];
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
    let in_force = &RULE_SETS[usize::from(first & 1)];
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
    let target = TARGETS[usize::from(choices.next()) % TARGETS.len()];
    let guard = [PathGuard::Off, PathGuard::Administration, PathGuard::Strict][usize::from(choices.next()) % 3];
    let head = RequestHead { path_and_query: target, headers: &headers, has_body: first & 16 > 0 };
    let (mut exchange, _) = Exchange::begin(in_force, guard, &head, NOW);
    let mut out = Vec::new();
    while !choices.0.is_empty() {
        let event = choices.next();
        let which = usize::from(event >> 4);
        let body = match BODIES.get(which) {
            Some(body) => Bytes::from_static(body.as_bytes()),
            None => Bytes::copy_from_slice(choices.take(which)),
        };
        let random = u64::from(event) << 56;
        match event & 15 {
            0..=4 => drop(exchange.request_chunk(&body, random, NOW, &mut out)),
            5 => drop(exchange.request_body(&body, random, NOW)),
            6 | 7 => drop(exchange.request_end(&mut out)),
            8 => drop(exchange.route_by_model(["m", "other", ""][which % 3], random, NOW)),
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
        let told = exchange.target_header().map(|target| target.as_bytes().to_vec());
        assert!(told.is_none_or(|told| exchange.served_model().is_some_and(|model| model.as_bytes() == told)));
    }
    if first & 32 > 0 {
        exchange.end(NOW);
    } else {
        drop(exchange);
    }
    let mut registry = prometheus_client::registry::Registry::default();
    in_force.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let in_flight = text.lines().filter(|line| line.contains("in_flight") && !line.starts_with('#'));
    assert!(in_flight.clone().all(|line| line.ends_with(" 0")), "{:?}", in_flight.collect::<Vec<_>>());
}
