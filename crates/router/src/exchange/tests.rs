use super::*;
use crate::fixtures::{active_rules, rewrite, rule, timestamp, with_sticky_header};
use http::{HeaderMap, HeaderName};
use prometheus_client::{encoding::text::encode, registry::Registry};
use proptest::prelude::*;

const CHAT: &str = "/v1/chat/completions";

fn weighted_rules() -> Arc<ActiveRules> {
    active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 90), ("m-v2", 10)])])])
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn begin(in_force: &Arc<ActiveRules>, target: &str, headers: &HeaderMap, has_body: bool) -> (Exchange, HeadAction) {
    Exchange::begin(
        in_force,
        PathGuard::Administration,
        &RequestHead { path_and_query: target, headers, has_body },
        timestamp(0),
    )
}

/// A chat request with this body; the lowest of all random numbers.
fn chat(in_force: &Arc<ActiveRules>, body: &str) -> (Exchange, BodyAction) {
    let (mut exchange, action) = begin(in_force, CHAT, &HeaderMap::new(), true);
    assert_eq!(action, HeadAction::ReadBody);
    let action = exchange.request_body(&Bytes::copy_from_slice(body.as_bytes()), 0, timestamp(0));
    (exchange, action)
}

fn expect_replaced(action: BodyAction) -> String {
    let BodyAction::Replace(spliced) = action else { panic!("{action:?}") };
    let length = spliced.len();
    let body = String::from_utf8(spliced.into_bytes().to_vec()).unwrap();
    assert_eq!(body.len(), length);
    body
}

/// The same request, with its body cut at `cuts`: what goes on, or the refusal.
fn chat_in_chunks(
    in_force: &Arc<ActiveRules>,
    body: &[u8],
    cuts: &[usize],
) -> (Exchange, Result<Vec<u8>, RequestRefusal>) {
    let (mut exchange, _) = begin(in_force, CHAT, &HeaderMap::new(), true);
    let body = Bytes::copy_from_slice(body);
    let mut out = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([body.len()]) {
        if let Err(refusal) = exchange.request_chunk(&body.slice(start..end), 0, timestamp(0), &mut out) {
            return (exchange, Err(refusal));
        }
        start = end;
    }
    let ended = exchange.request_end(&mut out);
    (exchange, ended.map(|()| out.concat()))
}

/// The lines of the metrics that have a value other than 0 and are no buckets.
fn nonzero_metrics(in_force: &ActiveRules) -> Vec<String> {
    let mut registry = Registry::default();
    in_force.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let is_news = |line: &&str| !line.starts_with('#') && !line.contains("_bucket") && !line.ends_with(" 0");
    let mut lines: Vec<String> = text.lines().filter(is_news).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn decision_metric(model: &str, target: &str, count: u32) -> String {
    let labels = format!(r#"model_rewrite_name="r",model_name="{model}",target_model="{target}""#);
    format!("inference_extension_model_rewrite_decisions_total{{{labels}}} {count}")
}

#[test]
fn a_request_with_a_rule_is_rewritten_told_and_counted() {
    let in_force = weighted_rules();
    let (mut exchange, action) = chat(&in_force, r#"{"model": "m", "n": 1}"#);
    assert_eq!(expect_replaced(action), r#"{"model": "m-v1", "n": 1}"#);
    assert_eq!(exchange.served_model(), Some("m-v1"));
    assert!(
        nonzero_metrics(&in_force)
            .contains(&r#"rollora_router_requests_in_flight{rewrite="ns/r",target="m-v1"} 1"#.to_owned())
    );
    assert_eq!(exchange.response_head(StatusCode::CONTINUE, timestamp(1)).unwrap(), "m-v1");
    assert_eq!(exchange.response_head(StatusCode::OK, timestamp(2)).unwrap(), "m-v1");
    exchange.end(timestamp(5));
    assert_eq!(in_force.last_used("m-v1", timestamp(100)), Some(timestamp(5)));
    assert_eq!(
        nonzero_metrics(&in_force),
        [
            decision_metric("m", "m-v1", 1).as_str(),
            r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="2xx"} 1"#,
            r#"rollora_router_response_headers_seconds_count{rewrite="ns/r",target="m-v1"} 1"#,
            r#"rollora_router_response_headers_seconds_sum{rewrite="ns/r",target="m-v1"} 2.0"#,
        ]
    );
}

#[test]
fn answers_are_counted_by_their_class() {
    for (status, code) in [(200, "2xx"), (307, "3xx"), (404, "4xx"), (503, "5xx"), (999, "5xx")] {
        let in_force = weighted_rules();
        let (mut exchange, _) = chat(&in_force, r#"{"model":"m"}"#);
        exchange.response_head(StatusCode::from_u16(status).unwrap(), timestamp(1));
        exchange.response_head(StatusCode::OK, timestamp(2));
        drop(exchange);
        let line = format!(r#"rollora_router_requests_total{{rewrite="ns/r",target="m-v1",code="{code}"}} 1"#);
        let lines = nonzero_metrics(&in_force);
        assert!(
            lines.contains(&line) && lines.iter().filter(|line| line.contains("requests_total")).count() == 1,
            "{lines:?}"
        );
    }
}

#[test]
fn a_request_that_is_given_up_is_counted_as_unanswered() {
    let in_force = weighted_rules();
    let (exchange, _) = chat(&in_force, r#"{"model":"m"}"#);
    drop(exchange);
    let lines = nonzero_metrics(&in_force);
    assert!(lines.contains(&r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="none"} 1"#.to_owned()));
    assert!(!lines.iter().any(|line| line.contains("in_flight")), "{lines:?}");
    assert_eq!(in_force.last_used("m-v1", timestamp(100)), Some(timestamp(0)));
}

#[test]
fn what_no_rule_matches_passes_untouched() {
    for (body, reason, model) in [
        (r#"{"model": "other"}"#, "NoRule", Some("other")),
        (r#"{"model": "other" broken"#, "NoRule", Some("other")),
        (r#"{"model": "\ud800"}"#, "NoRule", None),
        (r#"{"model": null}"#, "NoRule", None),
        (r#"{"prompt": "x"}"#, "NoRule", None),
        (r#"{"model": "m"#, "NotJson", None),
        ("not json", "NotJson", None),
        ("[]", "NotJson", None),
        ("", "NoBody", None),
    ] {
        let in_force = weighted_rules();
        let (mut exchange, action) = chat(&in_force, body);
        assert_eq!(action, BodyAction::Forward, "{body}");
        assert_eq!(exchange.served_model(), model, "{body}");
        assert_eq!(exchange.response_head(StatusCode::OK, timestamp(1)), None, "{body}");
        let line = format!(r#"rollora_router_unrouted_requests_total{{reason="{reason}"}} 1"#);
        assert_eq!(nonzero_metrics(&in_force), [line], "{body}");
    }
}

#[test]
fn a_request_without_a_readable_body_passes() {
    for (headers, has_body, reason) in [
        (headers(&[]), false, "NoBody"),
        (headers(&[("content-encoding", "gzip")]), true, "Unreadable"),
        (headers(&[("content-type", "multipart/form-data; boundary=x")]), true, "Unreadable"),
    ] {
        let in_force = weighted_rules();
        let (exchange, action) = begin(&in_force, CHAT, &headers, has_body);
        assert_eq!((action, exchange.served_model()), (HeadAction::Forward, None));
        assert_eq!(
            nonzero_metrics(&in_force),
            [format!(r#"rollora_router_unrouted_requests_total{{reason="{reason}"}} 1"#)]
        );
    }
}

#[test]
fn a_body_that_is_not_shown_passes_as_unreadable() {
    let in_force = weighted_rules();
    let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
    exchange.skip_body();
    assert_eq!(exchange.response_head(StatusCode::OK, timestamp(1)), None);
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_unrouted_requests_total{reason="Unreadable"} 1"#]);
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for (body, refusal) in [
        (r#"{"model":"m","model":"m-v2"}"#, RequestRefusal::DuplicateModel),
        (r#"{"model":"other","mod\u0065l":"m"}"#, RequestRefusal::DuplicateModel),
        (r#"{"model":"m","#, RequestRefusal::MalformedBody),
        (r#"{"model":"m"} {"model":"m-v2"}"#, RequestRefusal::MalformedBody),
    ] {
        let in_force = weighted_rules();
        let (exchange, action) = chat(&in_force, body);
        assert_eq!((action, exchange.served_model()), (BodyAction::Refuse(refusal.clone()), None), "{body}");
        drop(exchange);
        let line = format!(r#"rollora_router_refused_requests_total{{reason="{}"}} 1"#, refusal.reason());
        assert_eq!(nonzero_metrics(&in_force), [line], "{body}");
    }
}

#[test]
fn utf_16_is_refused_where_a_server_would_read_it() {
    let wide: Vec<u8> = r#"{"model":"m"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let json = ("content-type", "application/json");
    for (target, pairs, action) in [
        (CHAT, vec![], BodyAction::Refuse(RequestRefusal::WideEncoding)),
        (CHAT, vec![json], BodyAction::Refuse(RequestRefusal::WideEncoding)),
        (CHAT, vec![("content-type", "application/octet-stream")], BodyAction::Forward),
        ("/v1/files", vec![json], BodyAction::Forward),
    ] {
        let (mut exchange, _) = begin(&weighted_rules(), target, &headers(&pairs), true);
        assert_eq!(exchange.request_body(&Bytes::from(wide.clone()), 0, timestamp(0)), action, "{target} {pairs:?}");
    }
}

#[test]
fn administration_is_refused_before_its_body_is_read() {
    let in_force = weighted_rules();
    let (_, action) = begin(&in_force, "/v1/load_lora_adapter", &HeaderMap::new(), true);
    assert_eq!(action, HeadAction::Refuse(RequestRefusal::AdministrationPath));
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_refused_requests_total{reason="AdministrationPath"} 1"#]);
}

#[test]
fn a_generic_rule_fills_a_missing_model() {
    let in_force = active_rules(&[rewrite("r", vec![rule(&[], &[("base", 1)])])]);
    for (body, expected) in [
        (r#"{"n":1}"#, r#"{"n":1,"model":"base"}"#),
        (r#"{"model":null}"#, r#"{"model":"base"}"#),
        (r#"{"model":""}"#, r#"{"model":"base"}"#),
        (r#"{"model":"\ud800"}"#, r#"{"model":"base"}"#),
    ] {
        assert_eq!(expect_replaced(chat(&in_force, body).1), expected);
    }
    let lines: Vec<String> = nonzero_metrics(&in_force).into_iter().filter(|line| line.contains("decisions")).collect();
    assert_eq!(lines, [decision_metric("other", "base", 4)]);
}

#[test]
fn a_rule_without_a_target_is_refused_as_upstream_does() {
    let nobody = RequestRefusal::NoTarget { rewrite: "ns/r".to_owned() };
    for targets in [vec![], vec![("", 1)]] {
        let in_force = active_rules(&[rewrite("r", vec![rule(&["m"], &targets)])]);
        assert_eq!(chat(&in_force, r#"{"model":"m"}"#).1, BodyAction::Refuse(nobody.clone()));
    }
}

#[test]
fn a_sticky_header_goes_before_chance() {
    let rewrite = with_sticky_header("x-session-id", rewrite("r", vec![rule(&["m"], &[("m-v1", 50), ("m-v2", 50)])]));
    let in_force = active_rules(&[rewrite]);
    let served = |headers: &HeaderMap, random| {
        let (mut exchange, _) = begin(&in_force, CHAT, headers, true);
        exchange.request_body(&Bytes::from_static(br#"{"model":"m"}"#), random, timestamp(0));
        exchange.served_model().unwrap().to_owned()
    };
    for session in ["one", "two", "three", "four", "five"] {
        let headers = headers(&[("x-session-id", session)]);
        assert_eq!(served(&headers, 0), served(&headers, u64::MAX), "{session}");
    }
    for chance in [HeaderMap::new(), headers(&[("x-session-id", "")])] {
        assert_eq!((served(&chance, 0).as_str(), served(&chance, u64::MAX).as_str()), ("m-v1", "m-v2"));
    }
}

#[test]
fn a_direct_request_for_a_target_is_a_use_of_it() {
    let in_force = weighted_rules();
    let (exchange, action) = chat(&in_force, r#"{"model":"m-v2"}"#);
    assert_eq!((action, exchange.served_model()), (BodyAction::Forward, Some("m-v2")));
    assert_eq!(in_force.last_used("m-v2", timestamp(50)), Some(timestamp(50)));
    exchange.end(timestamp(7));
    assert_eq!(in_force.last_used("m-v2", timestamp(50)), Some(timestamp(7)));
    assert_eq!(in_force.last_used("m-v1", timestamp(50)), None);
}

#[test]
fn the_rules_of_the_moment_of_the_decision_count() {
    let in_force = weighted_rules();
    let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
    in_force.apply(&rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])]));
    let action = exchange.request_body(&Bytes::from_static(br#"{"model":"m"}"#), 0, timestamp(0));
    assert_eq!(expect_replaced(action), r#"{"model":"m-v2"}"#);
}

#[test]
fn a_clock_that_goes_backwards_counts_no_time() {
    let in_force = weighted_rules();
    let (mut exchange, _) = chat(&in_force, r#"{"model":"m"}"#);
    exchange.response_head(StatusCode::OK, timestamp(-10));
    exchange.end(timestamp(-10));
    let sum = r#"rollora_router_response_headers_seconds_sum{rewrite="ns/r",target="m-v1"} 0.0"#;
    assert!(nonzero_metrics(&in_force).iter().any(|line| line == sum));
}

#[test]
fn a_body_in_pieces_goes_on_as_it_comes() {
    let in_force = weighted_rules();
    let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
    for (piece, passed) in [
        (r#"{"messages": ["#, vec![r#"{"messages": ["#]),
        (r#"{"model": "m"}], "mo"#, vec![r#"{"model": "m"}], "mo"#]),
        (r#"del": "#, vec![r#"del": "#]),
        (r#""mo"#, vec![]),
        (r#"dels", "#, vec![r#""mo"#, r#"dels""#, ", "]),
    ] {
        let mut out = Vec::new();
        exchange.request_chunk(&Bytes::from(piece), 0, timestamp(0), &mut out).unwrap();
        assert_eq!(out, passed, "{piece}");
    }
    assert_eq!(exchange.served_model(), Some("models"));
    let mut out = Vec::new();
    exchange.request_chunk(&Bytes::from(r#""n": 1}"#), 0, timestamp(0), &mut out).unwrap();
    exchange.request_end(&mut out).unwrap();
    assert_eq!(out, [r#""n": 1}"#]);
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_unrouted_requests_total{reason="NoRule"} 1"#]);
}

#[test]
fn only_the_name_is_held_and_never_more_than_a_name_may_be() {
    let in_force = weighted_rules();
    let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
    let mut out = Vec::new();
    exchange.request_chunk(&Bytes::from(r#"{"model":"m"#), 0, timestamp(0), &mut out).unwrap();
    assert_eq!(out.concat(), br#"{"model":"#);
    let long = Bytes::from(vec![b'x'; json::MAX_NAME_LENGTH]);
    assert_eq!(exchange.request_chunk(&long, 0, timestamp(0), &mut out), Err(RequestRefusal::ModelNameTooLong));
    drop(exchange);
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_refused_requests_total{reason="LongName"} 1"#]);
}

#[test]
fn a_refusal_behind_the_decision_is_nobodys_answer() {
    for (body, reason) in [(r#"{"model":"m","model":"x"}"#, "DuplicateModel"), (r#"{"model":"m",}"#, "BrokenBody")] {
        let in_force = weighted_rules();
        let (mut exchange, refused) = chat_in_chunks(&in_force, body.as_bytes(), &[12]);
        assert_eq!(refused.unwrap_err().reason(), reason);
        assert_eq!(exchange.served_model(), None);
        assert_eq!(exchange.response_head(StatusCode::BAD_REQUEST, timestamp(1)), None);
        drop(exchange);
        let refused = format!(r#"rollora_router_refused_requests_total{{reason="{reason}"}} 1"#);
        assert_eq!(nonzero_metrics(&in_force), [decision_metric("m", "m-v1", 1), refused]);
    }
}

#[test]
fn the_pieces_of_utf_16_are_judged_as_its_whole() {
    let wide: Vec<u8> = r#"{"model":"m"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (target, passes) in [(CHAT, false), ("/v1/files", true)] {
        for cut in 0..wide.len() {
            let (mut exchange, _) = begin(&weighted_rules(), target, &HeaderMap::new(), true);
            let mut out = Vec::new();
            let mut take = |piece| exchange.request_chunk(&Bytes::copy_from_slice(piece), 0, timestamp(0), &mut out);
            let taken = take(&wide[..cut]).and_then(|()| take(&wide[cut..]));
            assert_eq!(taken, if passes { Ok(()) } else { Err(RequestRefusal::WideEncoding) }, "{target} {cut}");
            assert!(!passes || out.concat() == wide);
        }
    }
}

/// Bodies that are JSON for a while, with and without what the rules of a test match.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"model\"",
        "\"mod\\u0065l\"",
        "\"m\"",
        "\"other\"",
        "\"m\\u002dx\"",
        "{\"model\":\"m\"",
        "{\"model\":\"other\"",
        "{\"a\":1",
        ",\"model\":",
        " ",
        "1",
        "null",
        "}}",
        "é",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    /// Passed on as it comes or judged as a whole, cut anywhere: the same goes on, and the same is refused.
    #[test]
    fn a_body_in_pieces_becomes_what_the_whole_becomes(
        body in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        generic in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.sort_unstable();
        let rules = || {
            let exact = rewrite("r", vec![rule(&["m", "m-x"], &[("m-v1", 1)])]);
            let any = rewrite("any", vec![rule(&[], &[("base", 1)])]);
            if generic { active_rules(&[exact, any]) } else { active_rules(&[exact]) }
        };
        let (by_whole, by_pieces) = (rules(), rules());
        let (mut exchange, _) = begin(&by_whole, CHAT, &HeaderMap::new(), true);
        let whole = match exchange.request_body(&Bytes::copy_from_slice(&body), 0, timestamp(0)) {
            BodyAction::Forward => Ok(body.clone()),
            BodyAction::Replace(spliced) => Ok(spliced.into_bytes().to_vec()),
            BodyAction::Refuse(refusal) => Err(refusal),
        };
        let (in_pieces, outcome) = chat_in_chunks(&by_pieces, &body, &cuts);
        prop_assert_eq!(&outcome, &whole);
        prop_assert_eq!(in_pieces.served_model(), exchange.served_model());
        if outcome.is_ok() {
            prop_assert_eq!(nonzero_metrics(&by_pieces), nonzero_metrics(&by_whole));
        }
    }

    /// Whatever a client sends, a server sees one of the rule's targets, or the body as it was sent and no alias.
    #[test]
    fn no_body_reaches_a_model_that_was_not_decided(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\"model\"", "\"mod\\u0065l\"", "\"m\"", "\"m-v2\"",
            "{\"model\":\"m\"", " ", "1",
        ]), 0..16),
        random in any::<u64>(),
    ) {
        let in_force = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 1)])])]);
        let body = Bytes::from(pieces.concat());
        let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
        let read = |body: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(body).ok()?;
            Some(value.get("model")?.as_str()?.to_owned())
        };
        match exchange.request_body(&body, random, timestamp(0)) {
            BodyAction::Replace(spliced) => prop_assert_eq!(read(&spliced.into_bytes()).unwrap_or_default(), "m-v1"),
            BodyAction::Forward => prop_assert_ne!(read(&body).unwrap_or_default(), "m"),
            BodyAction::Refuse(_) => {}
        }
    }

    #[test]
    fn whatever_happens_to_a_request_it_is_over_in_the_end(
        events in prop::collection::vec((0..7_u8, 100..600_u16), 0..8),
        ends in any::<bool>(),
    ) {
        let in_force = weighted_rules();
        let (mut exchange, _) = begin(&in_force, CHAT, &HeaderMap::new(), true);
        for (event, status) in events {
            match event {
                0 => drop(exchange.request_body(&Bytes::from(r#"{"model":"m"}"#), u64::from(status) << 54, timestamp(1))),
                1 => drop(exchange.request_body(&Bytes::from(r#"{"model":"m-v2"}"#), 0, timestamp(1))),
                2 => drop(exchange.request_body(&Bytes::from("{"), 0, timestamp(1))),
                3 => drop(exchange.request_chunk(&Bytes::from(r#"{"model":"m"}"#), 0, timestamp(1), &mut Vec::new())),
                4 => drop(exchange.request_chunk(&Bytes::from(r#"{"model":"m-v2","#), 0, timestamp(1), &mut Vec::new())),
                5 => drop(exchange.request_end(&mut Vec::new())),
                _ => drop(exchange.response_head(StatusCode::from_u16(status).unwrap(), timestamp(2))),
            }
        }
        if ends { exchange.end(timestamp(3)) } else { drop(exchange) }
        prop_assert!(!nonzero_metrics(&in_force).iter().any(|line| line.contains("in_flight")));
        for target in ["m-v1", "m-v2"] {
            prop_assert!(in_force.last_used(target, timestamp(100)).is_none_or(|last| last <= timestamp(3)));
        }
    }
}
