//! What headers tell of the model, what is held until it is known, and what a filter that only observes leads to.

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

fn filter_with(how: RewriteOptions) -> FilterSimulator {
    FilterSimulator::with_shared(shared_with(&active_rules(), how))
}

fn rewrite_header_pairs(target: &str) -> Vec<(String, String)> {
    REWRITE_HEADERS.map(|name| pair(name, target)).to_vec()
}

#[test]
fn the_route_is_chosen_by_the_name_that_the_client_asked_for() {
    for (model, told) in [
        ("alias", vec![pair(MODEL_HEADER, "alias"), pair(BASE_MODEL_HEADER, "base")]),
        ("base", vec![pair(MODEL_HEADER, "base"), pair(BASE_MODEL_HEADER, "base")]),
        ("other", vec![pair(MODEL_HEADER, "other")]),
    ] {
        for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
            let mut filter = filter_with(routing_options());
            filter.send(chat(mode, &[]));
            filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
            filter.upstream.set.retain(|(name, _)| name != "content-length");
            assert_eq!((&filter.upstream.set, filter.upstream.route_cache_cleared), (&told, true), "{mode:?}");
        }
    }
}

#[test]
fn a_route_is_chosen_anew_only_where_what_it_is_chosen_by_has_changed() {
    let right = [(MODEL_HEADER, "alias"), (BASE_MODEL_HEADER, "base")];
    for (sent, model, anew) in [
        (&right[..], r#""alias""#, false),
        (&[(MODEL_HEADER, "alias"), (BASE_MODEL_HEADER, "forged")], r#""alias""#, true),
        (&[(MODEL_HEADER, "forged")], "null", true),
        (&[], "null", false),
        (&[("x-gateway-destination-endpoint", "forged")], "null", false),
    ] {
        for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
            let mut filter = filter_with(routing_options());
            filter.send(chat(mode, sent));
            filter.send(body(format!(r#"{{"model":{model}}}"#).as_bytes(), true));
            assert_eq!(filter.upstream.route_cache_cleared, anew, "{mode:?} {sent:?} {model}");
            assert!(filter.upstream.end_of_stream && !filter.upstream.set.iter().any(|(_, value)| value == "forged"));
        }
        let mut filter = filter_with(RewriteOptions::default());
        filter.send(chat(BodySendMode::FullDuplexStreamed, sent));
        assert!(!filter.upstream.route_cache_cleared, "nobody asked for it");
    }
}

#[test]
fn headers_and_body_wait_for_the_model_and_no_longer() {
    let mut filter = filter_with(routing_options());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    for piece in [r#"{"messages":["#, r#"],"model":"al"#, "ia"] {
        filter.send(body(piece.as_bytes(), false));
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
fn what_has_no_model_waits_for_nothing() {
    for sent in ["no JSON", "[1]", r#"{"a":1}"#] {
        let mut filter = filter_with(routing_options());
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(sent.as_bytes(), false));
        assert_eq!((filter.upstream.replies, filter.body()), (2, sent), "before its end");
        filter.send(body(b"", true));
        assert!(filter.upstream.end_of_stream);
    }
    let mut filter = filter_with(routing_options());
    filter.send(first_message(Some(BodySendMode::FullDuplexStreamed.into()), &[(":path", "/v1/models")], true));
    assert_eq!(filter.upstream.replies, 1);
    let mut filter = filter_with(routing_options());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(trailers());
    assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (2, true));
}

#[test]
fn so_much_is_held_of_a_request_and_no_more() {
    for (length, status) in [(2_000, None), (2_001, Some(413))] {
        let mut filter = filter_with(header_options());
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        let begin = r#"{"prompt":""#;
        filter.send(body(format!("{begin}{}", "x".repeat(length - begin.len())).as_bytes(), false));
        let answered = filter.upstream.refused.as_ref().map(|(status, _)| *status);
        assert_eq!(answered, status);
        filter.send(body(br#"","model":"alias"}"#, true));
        assert_eq!(filter.upstream.end_of_stream, status.is_none());
    }
}

#[test]
fn what_is_held_for_too_long_is_answered() {
    let in_force = active_rules();
    let mut filter = FilterSimulator::with_shared(shared_with(&in_force, routing_options()));
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"#, false));
    let mut replies = ReplyQueue::new();
    filter.processor.time_out_buffer(&mut replies);
    filter.apply_action(ProcessingResponse::decode(&replies[0].to_bytes()[..]).unwrap().action.unwrap());
    let (status, words) = filter.upstream.refused.unwrap();
    assert_eq!(status, 408);
    assert!(words.contains("within 30s, which is what --hold-timeout allows"), "{words}");
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_refused_requests_total{reason="HeldTooLong"} 1"#]);
}

#[test]
fn a_header_names_the_target_and_the_body_stays() {
    for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
        for sent in [r#"{"n":1,"model":"alias"}"#, r#"{ "model" : "al\u0069as" }"#] {
            let in_force = active_rules();
            let mut filter = FilterSimulator::with_shared(shared_with(&in_force, header_options()));
            filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
            filter.send(body(sent.as_bytes(), true));
            filter.send(response_headers("200", &[]));
            assert_eq!((filter.body(), filter.upstream.end_of_stream), (sent, true), "{mode:?}");
            assert_eq!(
                (filter.upstream.set, filter.upstream.route_cache_cleared),
                (rewrite_header_pairs("alias-v2"), false)
            );
            assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
            assert!(nonzero_metrics(&in_force)[0].starts_with("inference_extension_model_rewrite_decisions_total"));
        }
        let mut filter = filter_with(header_options());
        filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
        filter.send(body(br#"{"model":"other"}"#, true));
        assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![], vec![REWRITE_HEADERS[1].to_owned()]));
    }
}

#[test]
fn a_header_is_no_way_around_what_is_refused() {
    for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
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
    fn a_body_that_stays_is_as_it_was_sent_wherever_it_is_cut(
        sent in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.sort_unstable();
        let mut whole = FilterSimulator::with_shared(shared_with(&generic_rules(), header_options()));
        whole.send(chat(BodySendMode::Buffered, &[]));
        whole.send(body(&sent, true));
        let mut filter = FilterSimulator::with_shared(shared_with(&generic_rules(), header_options()));
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
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
            // Of a body that is refused behind its model the headers have gone on, and its end has not.
            prop_assert_eq!(&filter.upstream.set, &whole.upstream.set);
        }
    }
}

#[test]
fn where_there_is_no_place_for_headers_it_says_so() {
    for how in [routing_options(), header_options()] {
        let mut filter = filter_with(how);
        assert!(!filter.send(chat(BodySendMode::Streamed, &[])));
        let (status, words) = filter.upstream.refused.unwrap();
        assert_eq!(status, 500);
        assert!(words.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{words}");
    }
}

#[test]
fn without_the_body_the_model_is_what_an_earlier_filter_says() {
    for how in [RewriteOptions::default(), header_options()] {
        let in_force = active_rules();
        let mut filter = FilterSimulator::with_shared(shared_with(&in_force, how));
        filter.send(chat(BodySendMode::None, &[(MODEL_HEADER, "alias")]));
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream.set, rewrite_header_pairs("alias-v2"));
        assert_eq!(filter.upstream.removed, [MODEL_HEADER]);
        assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    }
    let mut filter = filter_with(routing_options());
    filter.send(chat(BodySendMode::None, &[(MODEL_HEADER, "other")]));
    assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![pair(MODEL_HEADER, "other")], vec![]));
}

#[test]
fn what_a_server_says_under_internal_names_is_removed() {
    let mut filter = filter_with(RewriteOptions::default());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"alias"}"#, true));
    let forged: Vec<_> = REQUEST_ONLY_HEADERS.iter().map(|name| (*name, "forged")).collect();
    filter.send(response_headers("200", &[&forged[..], &[("x-llm-d-request-dropped-reason", "full")]].concat()));
    assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    assert_eq!(filter.upstream.response_removed, REQUEST_ONLY_HEADERS[1..]);
}

/// A filter in observability mode over an answer that is cut into these pieces.
fn observe_response(rules: &Arc<ProcessorShared>, target: Option<&str>, pieces: &[&str], ends: bool) {
    let mut filter = FilterSimulator::with_shared(Arc::clone(rules));
    let said: Vec<_> = target.map(|target| (TARGET_HEADER, target)).into_iter().collect();
    let piece = |bytes: &str, end_of_stream| {
        message(ProcessingEvent::ResponseBody(HttpBody {
            body: Bytes::copy_from_slice(bytes.as_bytes()),
            end_of_stream,
        }))
    };
    let mut messages = vec![chat(BodySendMode::None, &[]), response_headers("200", &said)];
    messages.extend(pieces.iter().map(|bytes| piece(bytes, false)));
    messages.extend(ends.then(|| piece("", true)));
    for message in messages {
        assert!(filter.send(ProcessingRequest { observability_mode: true, ..message }));
    }
    assert_eq!(filter.upstream, UpstreamState::default(), "it is told nothing");
}

#[test]
fn a_filter_that_observes_is_told_nothing_and_counts_answers() {
    let in_force = active_rules();
    let mut registry = Registry::default();
    let figures = ObservedMetrics::new(&mut registry);
    let mut rules = shared(&in_force);
    Arc::get_mut(&mut rules).unwrap().observed = figures;
    observe_response(
        &rules,
        Some("alias-v2"),
        &[r#"{"usage":{"prompt_tokens":7,"compl"#, r#"etion_tokens":40}}"#],
        true,
    );
    observe_response(&rules, Some("alias-v2"), &["data: 1"], false);
    observe_response(&rules, Some("made up"), &[], true);
    observe_response(&rules, None, &[], true);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        r#"rollora_observed_answers_total{target="alias-v2",end="whole"} 1"#,
        r#"rollora_observed_answers_total{target="alias-v2",end="cut"} 1"#,
        r#"rollora_observed_answers_total{target="other",end="whole"} 2"#,
        r#"rollora_observed_answers_in_flight{target="alias-v2"} 0"#,
        r#"rollora_observed_answer_bytes_total{target="alias-v2"} 59"#,
        r#"rollora_observed_prompt_tokens_total{target="alias-v2"} 7"#,
        r#"rollora_observed_completion_tokens_total{target="alias-v2"} 40"#,
        r#"rollora_observed_seconds_count{target="alias-v2"} 2"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("made up"));
    assert_eq!(nonzero_metrics(&in_force), Vec::<String>::new(), "it decides nothing");
}
