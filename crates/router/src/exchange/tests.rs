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

fn begin(active_rules: &Arc<ActiveRules>, path: &str, headers: &HeaderMap, has_body: bool) -> (Exchange, HeadAction) {
    Exchange::begin(
        active_rules,
        PathGuard::Administration,
        &RequestHead { path_and_query: path, headers, has_body },
        timestamp(0),
    )
}

/// Sends a chat request with this whole body and the random number 0.
fn chat(active_rules: &Arc<ActiveRules>, body: &str) -> (Exchange, BodyAction) {
    let (mut exchange, action) = begin(active_rules, CHAT, &HeaderMap::new(), true);
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

/// Sends a chat request whose body is split at `cuts`. Returns the forwarded bytes or the refusal.
fn chat_in_chunks(
    active_rules: &Arc<ActiveRules>,
    body: &[u8],
    cuts: &[usize],
) -> (Exchange, Result<Vec<u8>, RequestRefusal>) {
    let (mut exchange, _) = begin(active_rules, CHAT, &HeaderMap::new(), true);
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

/// Returns the metric lines with a value other than 0, without histogram buckets.
fn nonzero_metrics(active_rules: &ActiveRules) -> Vec<String> {
    let mut registry = Registry::default();
    active_rules.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let is_relevant = |line: &&str| !line.starts_with('#') && !line.contains("_bucket") && !line.ends_with(" 0");
    let mut lines: Vec<String> = text.lines().filter(is_relevant).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn decision_metric(model: &str, target: &str, count: u32) -> String {
    let labels = format!(r#"model_rewrite_name="r",model_name="{model}",target_model="{target}""#);
    format!("inference_extension_model_rewrite_decisions_total{{{labels}}} {count}")
}

#[test]
fn matching_request_is_rewritten_reported_and_counted() {
    let active_rules = weighted_rules();
    let (mut exchange, action) = chat(&active_rules, r#"{"model": "m", "n": 1}"#);
    assert_eq!(expect_replaced(action), r#"{"model": "m-v1", "n": 1}"#);
    assert_eq!(exchange.served_model(), Some("m-v1"));
    assert!(
        nonzero_metrics(&active_rules)
            .contains(&r#"rollora_router_requests_in_flight{rewrite="ns/r",target="m-v1"} 1"#.to_owned())
    );
    assert_eq!(exchange.response_head(StatusCode::CONTINUE, timestamp(1)).unwrap(), "m-v1");
    assert_eq!(exchange.response_head(StatusCode::OK, timestamp(2)).unwrap(), "m-v1");
    exchange.end(timestamp(5));
    assert_eq!(active_rules.last_used("m-v1", timestamp(100)), Some(timestamp(5)));
    assert_eq!(
        nonzero_metrics(&active_rules),
        [
            decision_metric("m", "m-v1", 1).as_str(),
            r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="2xx"} 1"#,
            r#"rollora_router_response_headers_seconds_count{rewrite="ns/r",target="m-v1"} 1"#,
            r#"rollora_router_response_headers_seconds_sum{rewrite="ns/r",target="m-v1"} 2.0"#,
        ]
    );
}

#[test]
fn responses_are_counted_by_status_class() {
    for (status, code) in [(200, "2xx"), (307, "3xx"), (404, "4xx"), (503, "5xx"), (999, "5xx")] {
        let active_rules = weighted_rules();
        let (mut exchange, _) = chat(&active_rules, r#"{"model":"m"}"#);
        exchange.response_head(StatusCode::from_u16(status).unwrap(), timestamp(1));
        exchange.response_head(StatusCode::OK, timestamp(2));
        drop(exchange);
        let line = format!(r#"rollora_router_requests_total{{rewrite="ns/r",target="m-v1",code="{code}"}} 1"#);
        let lines = nonzero_metrics(&active_rules);
        assert!(
            lines.contains(&line) && lines.iter().filter(|line| line.contains("requests_total")).count() == 1,
            "{lines:?}"
        );
    }
}

#[test]
fn dropped_request_is_counted_without_response() {
    let active_rules = weighted_rules();
    let (exchange, _) = chat(&active_rules, r#"{"model":"m"}"#);
    drop(exchange);
    let lines = nonzero_metrics(&active_rules);
    assert!(lines.contains(&r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="none"} 1"#.to_owned()));
    assert!(!lines.iter().any(|line| line.contains("in_flight")), "{lines:?}");
    assert_eq!(active_rules.last_used("m-v1", timestamp(100)), Some(timestamp(0)));
}

#[test]
fn request_without_rule_is_forwarded_unchanged() {
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
        let active_rules = weighted_rules();
        let (mut exchange, action) = chat(&active_rules, body);
        assert_eq!(action, BodyAction::Forward, "{body}");
        assert_eq!(exchange.served_model(), model, "{body}");
        assert_eq!(exchange.response_head(StatusCode::OK, timestamp(1)), None, "{body}");
        let line = format!(r#"rollora_router_unrouted_requests_total{{reason="{reason}"}} 1"#);
        assert_eq!(nonzero_metrics(&active_rules), [line], "{body}");
    }
}

#[test]
fn request_without_readable_body_is_forwarded() {
    for (headers, has_body, reason) in [
        (headers(&[]), false, "NoBody"),
        (headers(&[("content-encoding", "gzip")]), true, "Unreadable"),
        (headers(&[("content-type", "multipart/form-data; boundary=x")]), true, "Unreadable"),
    ] {
        let active_rules = weighted_rules();
        let (exchange, action) = begin(&active_rules, CHAT, &headers, has_body);
        assert_eq!((action, exchange.served_model()), (HeadAction::Forward, None));
        assert_eq!(
            nonzero_metrics(&active_rules),
            [format!(r#"rollora_router_unrouted_requests_total{{reason="{reason}"}} 1"#)]
        );
    }
}

#[test]
fn skipped_body_is_counted_as_unreadable() {
    let active_rules = weighted_rules();
    let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
    exchange.skip_body();
    assert_eq!(exchange.response_head(StatusCode::OK, timestamp(1)), None);
    assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_unrouted_requests_total{reason="Unreadable"} 1"#]);
}

#[test]
fn ambiguous_body_is_refused() {
    for (body, refusal) in [
        (r#"{"model":"m","model":"m-v2"}"#, RequestRefusal::DuplicateModel),
        (r#"{"model":"other","mod\u0065l":"m"}"#, RequestRefusal::DuplicateModel),
        (r#"{"model":"m","#, RequestRefusal::MalformedBody),
        (r#"{"model":"m"} {"model":"m-v2"}"#, RequestRefusal::MalformedBody),
    ] {
        let active_rules = weighted_rules();
        let (exchange, action) = chat(&active_rules, body);
        assert_eq!((action, exchange.served_model()), (BodyAction::Refuse(refusal.clone()), None), "{body}");
        drop(exchange);
        let line = format!(r#"rollora_router_refused_requests_total{{reason="{}"}} 1"#, refusal.reason());
        assert_eq!(nonzero_metrics(&active_rules), [line], "{body}");
    }
}

#[test]
fn utf_16_is_refused_where_a_server_would_accept_it() {
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
fn administration_path_is_refused_before_its_body() {
    let active_rules = weighted_rules();
    let (_, action) = begin(&active_rules, "/v1/load_lora_adapter", &HeaderMap::new(), true);
    assert_eq!(action, HeadAction::Refuse(RequestRefusal::AdministrationPath));
    assert_eq!(
        nonzero_metrics(&active_rules),
        [r#"rollora_router_refused_requests_total{reason="AdministrationPath"} 1"#]
    );
}

#[test]
fn generic_rule_fills_a_missing_model() {
    let active_rules = active_rules(&[rewrite("r", vec![rule(&[], &[("base", 1)])])]);
    for (body, expected) in [
        (r#"{"n":1}"#, r#"{"n":1,"model":"base"}"#),
        (r#"{"model":null}"#, r#"{"model":"base"}"#),
        (r#"{"model":""}"#, r#"{"model":"base"}"#),
        (r#"{"model":"\ud800"}"#, r#"{"model":"base"}"#),
    ] {
        assert_eq!(expect_replaced(chat(&active_rules, body).1), expected);
    }
    let lines: Vec<String> =
        nonzero_metrics(&active_rules).into_iter().filter(|line| line.contains("decisions")).collect();
    assert_eq!(lines, [decision_metric("other", "base", 4)]);
}

#[test]
fn rule_without_target_is_refused_like_upstream() {
    let refusal = RequestRefusal::NoTarget { rewrite: "ns/r".to_owned() };
    for targets in [vec![], vec![("", 1)]] {
        let active_rules = active_rules(&[rewrite("r", vec![rule(&["m"], &targets)])]);
        assert_eq!(chat(&active_rules, r#"{"model":"m"}"#).1, BodyAction::Refuse(refusal.clone()));
    }
}

#[test]
fn sticky_header_precedes_random_selection() {
    let rewrite = with_sticky_header("x-session-id", rewrite("r", vec![rule(&["m"], &[("m-v1", 50), ("m-v2", 50)])]));
    let active_rules = active_rules(&[rewrite]);
    let served = |headers: &HeaderMap, random| {
        let (mut exchange, _) = begin(&active_rules, CHAT, headers, true);
        exchange.request_body(&Bytes::from_static(br#"{"model":"m"}"#), random, timestamp(0));
        exchange.served_model().unwrap().to_owned()
    };
    for session in ["one", "two", "three", "four", "five"] {
        let headers = headers(&[("x-session-id", session)]);
        assert_eq!(served(&headers, 0), served(&headers, u64::MAX), "{session}");
    }
    for without_key in [HeaderMap::new(), headers(&[("x-session-id", "")])] {
        assert_eq!((served(&without_key, 0).as_str(), served(&without_key, u64::MAX).as_str()), ("m-v1", "m-v2"));
    }
}

#[test]
fn direct_request_for_target_counts_as_use() {
    let active_rules = weighted_rules();
    let (exchange, action) = chat(&active_rules, r#"{"model":"m-v2"}"#);
    assert_eq!((action, exchange.served_model()), (BodyAction::Forward, Some("m-v2")));
    assert_eq!(active_rules.last_used("m-v2", timestamp(50)), Some(timestamp(50)));
    exchange.end(timestamp(7));
    assert_eq!(active_rules.last_used("m-v2", timestamp(50)), Some(timestamp(7)));
    assert_eq!(active_rules.last_used("m-v1", timestamp(50)), None);
}

#[test]
fn rules_at_decision_time_apply() {
    let active_rules = weighted_rules();
    let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
    active_rules.apply(&rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])]));
    let action = exchange.request_body(&Bytes::from_static(br#"{"model":"m"}"#), 0, timestamp(0));
    assert_eq!(expect_replaced(action), r#"{"model":"m-v2"}"#);
}

#[test]
fn clock_going_backwards_records_zero_seconds() {
    let active_rules = weighted_rules();
    let (mut exchange, _) = chat(&active_rules, r#"{"model":"m"}"#);
    exchange.response_head(StatusCode::OK, timestamp(-10));
    exchange.end(timestamp(-10));
    let sum = r#"rollora_router_response_headers_seconds_sum{rewrite="ns/r",target="m-v1"} 0.0"#;
    assert!(nonzero_metrics(&active_rules).iter().any(|line| line == sum));
}

#[test]
fn chunked_body_is_forwarded_as_it_arrives() {
    let active_rules = weighted_rules();
    let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
    for (chunk, forwarded) in [
        (r#"{"messages": ["#, vec![r#"{"messages": ["#]),
        (r#"{"model": "m"}], "mo"#, vec![r#"{"model": "m"}], "mo"#]),
        (r#"del": "#, vec![r#"del": "#]),
        (r#""mo"#, vec![]),
        (r#"dels", "#, vec![r#""mo"#, r#"dels""#, ", "]),
    ] {
        let mut out = Vec::new();
        exchange.request_chunk(&Bytes::from(chunk), 0, timestamp(0), &mut out).unwrap();
        assert_eq!(out, forwarded, "{chunk}");
    }
    assert_eq!(exchange.served_model(), Some("models"));
    let mut out = Vec::new();
    exchange.request_chunk(&Bytes::from(r#""n": 1}"#), 0, timestamp(0), &mut out).unwrap();
    exchange.request_end(&mut out).unwrap();
    assert_eq!(out, [r#""n": 1}"#]);
    assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_unrouted_requests_total{reason="NoRule"} 1"#]);
}

#[test]
fn only_the_name_is_buffered_up_to_its_maximum() {
    let active_rules = weighted_rules();
    let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
    let mut out = Vec::new();
    exchange.request_chunk(&Bytes::from(r#"{"model":"m"#), 0, timestamp(0), &mut out).unwrap();
    assert_eq!(out.concat(), br#"{"model":"#);
    let long = Bytes::from(vec![b'x'; json::MAX_NAME_LENGTH]);
    assert_eq!(exchange.request_chunk(&long, 0, timestamp(0), &mut out), Err(RequestRefusal::ModelNameTooLong));
    drop(exchange);
    assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_refused_requests_total{reason="LongName"} 1"#]);
}

#[test]
fn refusal_after_decision_counts_for_no_target() {
    for (body, reason) in [(r#"{"model":"m","model":"x"}"#, "DuplicateModel"), (r#"{"model":"m",}"#, "BrokenBody")] {
        let active_rules = weighted_rules();
        let (mut exchange, refused) = chat_in_chunks(&active_rules, body.as_bytes(), &[12]);
        assert_eq!(refused.unwrap_err().reason(), reason);
        assert_eq!(exchange.served_model(), None);
        assert_eq!(exchange.response_head(StatusCode::BAD_REQUEST, timestamp(1)), None);
        drop(exchange);
        let refused = format!(r#"rollora_router_refused_requests_total{{reason="{reason}"}} 1"#);
        assert_eq!(nonzero_metrics(&active_rules), [decision_metric("m", "m-v1", 1), refused]);
    }
}

#[test]
fn chunked_utf_16_is_refused_like_whole_utf_16() {
    let wide: Vec<u8> = r#"{"model":"m"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (path, passes) in [(CHAT, false), ("/v1/files", true)] {
        for cut in 0..wide.len() {
            let (mut exchange, _) = begin(&weighted_rules(), path, &HeaderMap::new(), true);
            let mut out = Vec::new();
            let mut push = |chunk| exchange.request_chunk(&Bytes::copy_from_slice(chunk), 0, timestamp(0), &mut out);
            let result = push(&wide[..cut]).and_then(|()| push(&wide[cut..]));
            assert_eq!(result, if passes { Ok(()) } else { Err(RequestRefusal::WideEncoding) }, "{path} {cut}");
            assert!(!passes || out.concat() == wide);
        }
    }
}

/// Generates bodies that start as JSON, with and without a model that the rules match.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let chunk = prop::sample::select(vec![
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
    prop::collection::vec(chunk, 0..12).prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    /// Whether a body is read in chunks or as a whole, the same bytes are forwarded and the same bodies refused.
    #[test]
    fn chunked_body_gives_the_result_of_the_whole_body(
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
        let (by_whole, by_chunks) = (rules(), rules());
        let (mut exchange, _) = begin(&by_whole, CHAT, &HeaderMap::new(), true);
        let whole = match exchange.request_body(&Bytes::copy_from_slice(&body), 0, timestamp(0)) {
            BodyAction::Forward => Ok(body.clone()),
            BodyAction::Replace(spliced) => Ok(spliced.into_bytes().to_vec()),
            BodyAction::Refuse(refusal) => Err(refusal),
        };
        let (in_chunks, outcome) = chat_in_chunks(&by_chunks, &body, &cuts);
        prop_assert_eq!(&outcome, &whole);
        prop_assert_eq!(in_chunks.served_model(), exchange.served_model());
        if outcome.is_ok() {
            prop_assert_eq!(nonzero_metrics(&by_chunks), nonzero_metrics(&by_whole));
        }
    }

    /// For any body, the server sees a target of the rule, or the unchanged body without the alias.
    #[test]
    fn no_body_reaches_an_undecided_model(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\"model\"", "\"mod\\u0065l\"", "\"m\"", "\"m-v2\"",
            "{\"model\":\"m\"", " ", "1",
        ]), 0..16),
        random in any::<u64>(),
    ) {
        let active_rules = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 1)])])]);
        let body = Bytes::from(parts.concat());
        let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
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
    fn no_request_stays_in_flight_after_any_events(
        events in prop::collection::vec((0..7_u8, 100..600_u16), 0..8),
        ends in any::<bool>(),
    ) {
        let active_rules = weighted_rules();
        let (mut exchange, _) = begin(&active_rules, CHAT, &HeaderMap::new(), true);
        for (event, status) in events {
            match event {
                0 => {
                    let random = u64::from(status) << 54;
                    drop(exchange.request_body(&Bytes::from(r#"{"model":"m"}"#), random, timestamp(1)));
                }
                1 => drop(exchange.request_body(&Bytes::from(r#"{"model":"m-v2"}"#), 0, timestamp(1))),
                2 => drop(exchange.request_body(&Bytes::from("{"), 0, timestamp(1))),
                3 | 4 => {
                    let chunk = if event == 3 { r#"{"model":"m"}"# } else { r#"{"model":"m-v2","# };
                    drop(exchange.request_chunk(&Bytes::from(chunk), 0, timestamp(1), &mut Vec::new()));
                }
                5 => drop(exchange.request_end(&mut Vec::new())),
                _ => drop(exchange.response_head(StatusCode::from_u16(status).unwrap(), timestamp(2))),
            }
        }
        if ends { exchange.end(timestamp(3)) } else { drop(exchange) }
        prop_assert!(!nonzero_metrics(&active_rules).iter().any(|line| line.contains("in_flight")));
        for target in ["m-v1", "m-v2"] {
            prop_assert!(active_rules.last_used(target, timestamp(100)).is_none_or(|last| last <= timestamp(3)));
        }
    }
}
