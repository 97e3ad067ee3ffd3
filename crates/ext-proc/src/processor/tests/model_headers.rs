//! Headers that depend on the model, buffering until it is known, and filters in observability mode.

use super::*;
use crate::fixtures::shared_with;
use http::HeaderValue;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rollora_router::headers::{BASE_MODEL_HEADER, MODEL_HEADER, REWRITE_HEADERS};

fn routing_options() -> RewriteOptions {
    let base_model = Some(HeaderValue::from_static("base"));
    RewriteOptions { mode: RewriteMode::Body, routing_headers: true, base_model, restore_model: false }
}

fn header_options() -> RewriteOptions {
    RewriteOptions { mode: RewriteMode::Header, ..RewriteOptions::default() }
}

fn filter_with(rewrite: RewriteOptions) -> FilterSimulator {
    FilterSimulator::with_shared(shared_with(&active_rules(), rewrite))
}

fn rewrite_header_pairs(target: &str) -> Vec<(String, String)> {
    REWRITE_HEADERS.map(|name| pair(name, target)).to_vec()
}

#[test]
fn routing_headers_contain_the_requested_name() {
    for (model, expected) in [
        ("alias", vec![pair(MODEL_HEADER, "alias"), pair(BASE_MODEL_HEADER, "base")]),
        ("base", vec![pair(MODEL_HEADER, "base"), pair(BASE_MODEL_HEADER, "base")]),
        ("other", vec![pair(MODEL_HEADER, "other")]),
    ] {
        for mode in [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Buffered] {
            let mut filter = filter_with(routing_options());
            filter.send(chat(mode, &[]));
            filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
            filter.upstream.set.retain(|(name, _)| name != "content-length");
            assert_eq!((&filter.upstream.set, filter.upstream.route_cache_cleared), (&expected, true), "{mode:?}");
        }
    }
}

#[test]
fn route_cache_is_cleared_only_if_routing_headers_change() {
    let right = [(MODEL_HEADER, "alias"), (BASE_MODEL_HEADER, "base")];
    for (sent, model, cleared) in [
        (&right[..], r#""alias""#, false),
        (&[(MODEL_HEADER, "alias"), (BASE_MODEL_HEADER, "forged")], r#""alias""#, true),
        (&[(MODEL_HEADER, "forged")], "null", true),
        (&[], "null", false),
        (&[("x-gateway-destination-endpoint", "forged")], "null", false),
    ] {
        for mode in [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Buffered] {
            let mut filter = filter_with(routing_options());
            filter.send(chat(mode, sent));
            filter.send(body(format!(r#"{{"model":{model}}}"#).as_bytes(), true));
            assert_eq!(filter.upstream.route_cache_cleared, cleared, "{mode:?} {sent:?} {model}");
            assert!(filter.upstream.end_of_stream && !filter.upstream.set.iter().any(|(_, value)| value == "forged"));
        }
        let mut filter = filter_with(RewriteOptions::default());
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, sent));
        assert!(!filter.upstream.route_cache_cleared, "routing headers are off");
    }
}

#[test]
fn headers_and_body_wait_until_the_model_is_known() {
    let mut filter = filter_with(routing_options());
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    for chunk in [r#"{"messages":["#, r#"],"model":"al"#, "ia"] {
        filter.send(body(chunk.as_bytes(), false));
        assert_eq!(filter.upstream.replies, 0);
        assert!(filter.processor.is_buffering());
    }
    filter.send(body(br#"s","n":"#, false));
    assert_eq!((filter.upstream.replies, filter.body()), (2, r#"{"messages":[],"model":"alias-v2","n":"#));
    assert!(!filter.processor.is_buffering());
    filter.send(body(b"1}", true));
    assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"messages":[],"model":"alias-v2","n":1}"#, true));
}

#[test]
fn request_without_model_is_not_delayed() {
    for sent in ["not JSON", "[1]", r#"{"a":1}"#] {
        let mut filter = filter_with(routing_options());
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(sent.as_bytes(), false));
        assert_eq!((filter.upstream.replies, filter.body()), (2, sent), "forwarded before the end of the body");
        filter.send(body(b"", true));
        assert!(filter.upstream.end_of_stream);
    }
    let mut filter = filter_with(routing_options());
    filter.send(first_message(Some(proto::BodySendMode::FullDuplexStreamed.into()), &[(":path", "/v1/models")], true));
    assert_eq!(filter.upstream.replies, 1);
    let mut filter = filter_with(routing_options());
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    filter.send(trailers());
    assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (2, true));
}

#[test]
fn request_above_the_buffer_limit_is_refused() {
    for (length, status) in [(2_000, None), (2_001, Some(413))] {
        let mut filter = filter_with(header_options());
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
        let begin = r#"{"prompt":""#;
        filter.send(body(format!("{begin}{}", "x".repeat(length - begin.len())).as_bytes(), false));
        let refused = filter.upstream.refused.as_ref().map(|(status, _)| *status);
        assert_eq!(refused, status);
        filter.send(body(br#"","model":"alias"}"#, true));
        assert_eq!(filter.upstream.end_of_stream, status.is_none());
    }
}

#[test]
fn request_buffered_for_too_long_is_refused() {
    let active_rules = active_rules();
    let mut filter = FilterSimulator::with_shared(shared_with(&active_rules, routing_options()));
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"#, false));
    let mut replies = ReplyQueue::new();
    filter.processor.time_out_buffer(&mut replies);
    filter.apply_action(proto::ProcessingResponse::decode(&replies[0].to_bytes()[..]).unwrap().action.unwrap());
    let (status, message) = filter.upstream.refused.unwrap();
    assert_eq!(status, 408);
    assert!(message.contains("within 30s, which is the limit of --hold-timeout"), "{message}");
    assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_refused_requests_total{reason="HeldTooLong"} 1"#]);
}

#[test]
fn header_mode_sets_the_target_and_keeps_the_body() {
    for mode in [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Buffered] {
        for sent in [r#"{"n":1,"model":"alias"}"#, r#"{ "model" : "al\u0069as" }"#] {
            let active_rules = active_rules();
            let mut filter = FilterSimulator::with_shared(shared_with(&active_rules, header_options()));
            filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
            filter.send(body(sent.as_bytes(), true));
            filter.send(response_headers("200", &[]));
            assert_eq!((filter.body(), filter.upstream.end_of_stream), (sent, true), "{mode:?}");
            assert_eq!(
                (filter.upstream.set, filter.upstream.route_cache_cleared),
                (rewrite_header_pairs("alias-v2"), false)
            );
            assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
            assert!(nonzero_metrics(&active_rules)[0].starts_with("inference_extension_model_rewrite_decisions_total"));
        }
        let mut filter = filter_with(header_options());
        filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
        filter.send(body(br#"{"model":"other"}"#, true));
        assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![], vec![REWRITE_HEADERS[1].to_owned()]));
    }
}

#[test]
fn header_mode_refuses_the_same_bodies() {
    for mode in [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Buffered] {
        for sent in [r#"{"model":"alias","model":"x"}"#, r#"{"model":"alias"} {}"#, r#"{"model":"alias","#] {
            let mut filter = filter_with(header_options());
            filter.send(chat(mode, &[]));
            filter.send(body(sent.as_bytes(), true));
            assert_eq!(filter.upstream.refused.map(|(status, _)| status), Some(400), "{mode:?} {sent}");
        }
    }
}

proptest! {
    #[test]
    fn header_mode_keeps_the_body_for_every_chunking(
        sent in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.sort_unstable();
        let mut whole = FilterSimulator::with_shared(shared_with(&generic_rules(), header_options()));
        whole.send(chat(proto::BodySendMode::Buffered, &[]));
        whole.send(body(&sent, true));
        let mut filter = FilterSimulator::with_shared(shared_with(&generic_rules(), header_options()));
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
        let mut start = 0;
        for end in cuts {
            filter.send(body(&sent[start..end], false));
            start = end;
        }
        filter.send(body(&sent[start..], true));
        prop_assert_eq!(&filter.upstream.refused, &whole.upstream.refused);
        if filter.upstream.refused.is_none() {
            prop_assert_eq!((&filter.upstream.body, filter.upstream.end_of_stream), (&sent, true));
            prop_assert_eq!(&whole.upstream.body, &sent);
            // A body that is refused after its model can have forwarded headers, but never its end.
            prop_assert_eq!(&filter.upstream.set, &whole.upstream.set);
        }
    }
}

#[test]
fn mode_without_model_headers_is_refused_with_a_remedy() {
    for options in [routing_options(), header_options()] {
        let mut filter = filter_with(options);
        assert!(!filter.send(chat(proto::BodySendMode::Streamed, &[])));
        let (status, message) = filter.upstream.refused.unwrap();
        assert_eq!(status, 500);
        assert!(message.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{message}");
    }
}

#[test]
fn model_of_an_earlier_filter_is_used_without_the_body() {
    for options in [RewriteOptions::default(), header_options()] {
        let active_rules = active_rules();
        let mut filter = FilterSimulator::with_shared(shared_with(&active_rules, options));
        filter.send(chat(proto::BodySendMode::None, &[(MODEL_HEADER, "alias")]));
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream.set, rewrite_header_pairs("alias-v2"));
        assert_eq!(filter.upstream.removed, [MODEL_HEADER]);
        assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    }
    let mut filter = filter_with(routing_options());
    filter.send(chat(proto::BodySendMode::None, &[(MODEL_HEADER, "other")]));
    assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![pair(MODEL_HEADER, "other")], vec![]));
}

#[test]
fn internal_headers_of_servers_are_removed() {
    let mut filter = filter_with(RewriteOptions::default());
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"alias"}"#, true));
    let forged: Vec<_> = REQUEST_ONLY_HEADERS.iter().map(|name| (*name, "forged")).collect();
    filter.send(response_headers("200", &[&forged[..], &[("x-llm-d-request-dropped-reason", "full")]].concat()));
    assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    assert_eq!(filter.upstream.response_removed, REQUEST_ONLY_HEADERS[1..]);
}

/// Sends a response in these chunks to a filter in observability mode.
fn observe_response(shared: &Arc<ProcessorShared>, target: Option<&str>, chunks: &[&str], ends: bool) {
    let mut filter = FilterSimulator::with_shared(Arc::clone(shared));
    let headers: Vec<_> = target.map(|target| (TARGET_HEADER, target)).into_iter().collect();
    let chunk = |bytes: &str, end_of_stream| {
        message(proto::ProcessingEvent::ResponseBody(proto::HttpBody {
            body: Bytes::copy_from_slice(bytes.as_bytes()),
            end_of_stream,
        }))
    };
    let mut messages = vec![chat(proto::BodySendMode::None, &[]), response_headers("200", &headers)];
    messages.extend(chunks.iter().map(|bytes| chunk(bytes, false)));
    messages.extend(ends.then(|| chunk("", true)));
    for message in messages {
        assert!(filter.send(proto::ProcessingRequest { observability_mode: true, ..message }));
    }
    assert_eq!(filter.upstream, UpstreamState::default(), "a filter in observability mode gets no replies");
}

#[test]
fn observing_filter_counts_responses_without_replies() {
    let active_rules = active_rules();
    let mut registry = Registry::default();
    let metrics = ObservedMetrics::new(&mut registry);
    let mut shared = shared(&active_rules);
    Arc::get_mut(&mut shared).unwrap().observed = metrics;
    observe_response(
        &shared,
        Some("alias-v2"),
        &[r#"{"usage":{"prompt_tokens":7,"compl"#, r#"etion_tokens":40}}"#],
        true,
    );
    observe_response(&shared, Some("alias-v2"), &["data: 1"], false);
    observe_response(&shared, Some("made up"), &[], true);
    observe_response(&shared, None, &[], true);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        r#"rollora_observed_responses_total{target="alias-v2",end="whole"} 1"#,
        r#"rollora_observed_responses_total{target="alias-v2",end="cut"} 1"#,
        r#"rollora_observed_responses_total{target="other",end="whole"} 2"#,
        r#"rollora_observed_responses_in_flight{target="alias-v2"} 0"#,
        r#"rollora_observed_response_bytes_total{target="alias-v2"} 59"#,
        r#"rollora_observed_prompt_tokens_total{target="alias-v2"} 7"#,
        r#"rollora_observed_completion_tokens_total{target="alias-v2"} 40"#,
        r#"rollora_observed_seconds_count{target="alias-v2"} 2"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("made up"));
    assert_eq!(nonzero_metrics(&active_rules), Vec::<String>::new(), "an observing filter counts no decisions");
}
