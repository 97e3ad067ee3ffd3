//! What headers tell of the model, what is held until it is known, and what a filter that only observes leads to.

use super::*;
use crate::fixtures::rules_that_tell;
use http::HeaderValue;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rollora_router::headers::{BASE_MODEL_HEADER, MODEL_HEADER, REWRITE_HEADERS};

fn routing() -> How {
    let base_model = Some(HeaderValue::from_static("base"));
    How { rewrite: Rewrite::Body, routing_headers: true, base_model, restore_model: false }
}

fn header() -> How {
    How { rewrite: Rewrite::Header, ..How::default() }
}

fn telling(how: How) -> Filter {
    Filter::of(rules_that_tell(&in_force(), how))
}

fn under_both_names(target: &str) -> Vec<(String, String)> {
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
            let mut filter = telling(routing());
            filter.send(chat(mode, &[]));
            filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
            filter.upstream.set.retain(|(name, _)| name != "content-length");
            assert_eq!((&filter.upstream.set, filter.upstream.routed_anew), (&told, true), "{mode:?}");
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
            let mut filter = telling(routing());
            filter.send(chat(mode, sent));
            filter.send(body(format!(r#"{{"model":{model}}}"#).as_bytes(), true));
            assert_eq!(filter.upstream.routed_anew, anew, "{mode:?} {sent:?} {model}");
            assert!(filter.upstream.ended && !filter.upstream.set.iter().any(|(_, value)| value == "forged"));
        }
        let mut filter = telling(How::default());
        filter.send(chat(BodySendMode::FullDuplexStreamed, sent));
        assert!(!filter.upstream.routed_anew, "nobody asked for it");
    }
}

#[test]
fn headers_and_body_wait_for_the_model_and_no_longer() {
    let mut filter = telling(routing());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    for piece in [r#"{"messages":["#, r#"],"model":"al"#, "ia"] {
        filter.send(body(piece.as_bytes(), false));
        assert_eq!(filter.upstream.replies, 0);
        assert!(filter.processor.is_holding());
    }
    filter.send(body(br#"s","n":"#, false));
    assert_eq!((filter.upstream.replies, filter.body()), (2, r#"{"messages":[],"model":"alias-v2","n":"#));
    assert!(!filter.processor.is_holding());
    filter.send(body(b"1}", true));
    assert_eq!((filter.body(), filter.upstream.ended), (r#"{"messages":[],"model":"alias-v2","n":1}"#, true));
}

#[test]
fn what_has_no_model_waits_for_nothing() {
    for sent in ["no JSON", "[1]", r#"{"a":1}"#] {
        let mut filter = telling(routing());
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(sent.as_bytes(), false));
        assert_eq!((filter.upstream.replies, filter.body()), (2, sent), "before its end");
        filter.send(body(b"", true));
        assert!(filter.upstream.ended);
    }
    let mut filter = telling(routing());
    filter.send(first(Some(BodySendMode::FullDuplexStreamed.into()), &[(":path", "/v1/models")], true));
    assert_eq!(filter.upstream.replies, 1);
    let mut filter = telling(routing());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(trailers());
    assert_eq!((filter.upstream.replies, filter.upstream.ended), (2, true));
}

#[test]
fn so_much_is_held_of_a_request_and_no_more() {
    for (length, status) in [(2_000, None), (2_001, Some(413))] {
        let mut filter = telling(header());
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        let begin = r#"{"prompt":""#;
        filter.send(body(format!("{begin}{}", "x".repeat(length - begin.len())).as_bytes(), false));
        let answered = filter.upstream.answered.as_ref().map(|(status, _)| *status);
        assert_eq!(answered, status);
        filter.send(body(br#"","model":"alias"}"#, true));
        assert_eq!(filter.upstream.ended, status.is_none());
    }
}

#[test]
fn what_is_held_for_too_long_is_answered() {
    let in_force = in_force();
    let mut filter = Filter::of(rules_that_tell(&in_force, routing()));
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"#, false));
    let mut replies = Replies::new();
    filter.processor.held_too_long(&mut replies);
    filter.hear(ProcessingResponse::decode(&replies[0].to_wire()[..]).unwrap().action.unwrap());
    let (status, words) = filter.upstream.answered.unwrap();
    assert_eq!(status, 408);
    assert!(words.contains("within 30s, which is what --hold-timeout allows"), "{words}");
    assert_eq!(counted(&in_force), [r#"rollora_router_refused_requests_total{reason="HeldTooLong"} 1"#]);
}

#[test]
fn a_header_names_the_target_and_the_body_stays() {
    for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
        for sent in [r#"{"n":1,"model":"alias"}"#, r#"{ "model" : "al\u0069as" }"#] {
            let in_force = in_force();
            let mut filter = Filter::of(rules_that_tell(&in_force, header()));
            filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
            filter.send(body(sent.as_bytes(), true));
            filter.send(response("200", &[]));
            assert_eq!((filter.body(), filter.upstream.ended), (sent, true), "{mode:?}");
            assert_eq!((filter.upstream.set, filter.upstream.routed_anew), (under_both_names("alias-v2"), false));
            assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
            assert!(counted(&in_force)[0].starts_with("inference_extension_model_rewrite_decisions_total"));
        }
        let mut filter = telling(header());
        filter.send(chat(mode, &[(REWRITE_HEADERS[1], "forged")]));
        filter.send(body(br#"{"model":"other"}"#, true));
        assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![], vec![REWRITE_HEADERS[1].to_owned()]));
    }
}

#[test]
fn a_header_is_no_way_around_what_is_refused() {
    for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
        for sent in [r#"{"model":"alias","model":"x"}"#, r#"{"model":"alias"} {}"#, r#"{"model":"alias","#] {
            let mut filter = telling(header());
            filter.send(chat(mode, &[]));
            filter.send(body(sent.as_bytes(), true));
            assert_eq!(filter.upstream.answered.map(|(status, _)| status), Some(400), "{mode:?} {sent}");
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
        let mut whole = Filter::of(rules_that_tell(&generic(), header()));
        whole.send(chat(BodySendMode::Buffered, &[]));
        whole.send(body(&sent, true));
        let mut filter = Filter::of(rules_that_tell(&generic(), header()));
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        let mut start = 0;
        for end in cuts {
            filter.send(body(&sent[start..end], false));
            start = end;
        }
        filter.send(body(&sent[start..], true));
        prop_assert_eq!(&filter.upstream.answered, &whole.upstream.answered);
        if filter.upstream.answered.is_none() {
            prop_assert_eq!((&filter.upstream.body, filter.upstream.ended), (&sent, true));
            prop_assert_eq!(&whole.upstream.body, &sent);
            // Of a body that is refused behind its model the headers have gone on, and its end has not.
            prop_assert_eq!(&filter.upstream.set, &whole.upstream.set);
        }
    }
}

#[test]
fn where_there_is_no_place_for_headers_it_says_so() {
    for how in [routing(), header()] {
        let mut filter = telling(how);
        assert!(!filter.send(chat(BodySendMode::Streamed, &[])));
        let (status, words) = filter.upstream.answered.unwrap();
        assert_eq!(status, 500);
        assert!(words.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{words}");
    }
}

#[test]
fn without_the_body_the_model_is_what_an_earlier_filter_says() {
    for how in [How::default(), header()] {
        let in_force = in_force();
        let mut filter = Filter::of(rules_that_tell(&in_force, how));
        filter.send(chat(BodySendMode::None, &[(MODEL_HEADER, "alias")]));
        filter.send(response("200", &[]));
        assert_eq!(filter.upstream.set, under_both_names("alias-v2"));
        assert_eq!(filter.upstream.removed, [MODEL_HEADER]);
        assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    }
    let mut filter = telling(routing());
    filter.send(chat(BodySendMode::None, &[(MODEL_HEADER, "other")]));
    assert_eq!((filter.upstream.set, filter.upstream.removed), (vec![pair(MODEL_HEADER, "other")], vec![]));
}

#[test]
fn what_a_server_says_under_internal_names_is_removed() {
    let mut filter = telling(How::default());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(br#"{"model":"alias"}"#, true));
    let forged: Vec<_> = INTERNAL_TO_REQUESTS.iter().map(|name| (*name, "forged")).collect();
    filter.send(response("200", &[&forged[..], &[("x-llm-d-request-dropped-reason", "full")]].concat()));
    assert_eq!(filter.upstream.response_set, [pair(TARGET_HEADER, "alias-v2")]);
    assert_eq!(filter.upstream.response_removed, INTERNAL_TO_REQUESTS[1..]);
}

/// A filter in observability mode over an answer that is cut into these pieces.
fn observed(rules: &Arc<Rules>, target: Option<&str>, pieces: &[&str], ends: bool) {
    let mut filter = Filter::of(Arc::clone(rules));
    let said: Vec<_> = target.map(|target| (TARGET_HEADER, target)).into_iter().collect();
    let piece = |bytes: &str, end_of_stream| {
        message(Event::ResponseBody(HttpBody { body: Bytes::copy_from_slice(bytes.as_bytes()), end_of_stream }))
    };
    let mut messages = vec![chat(BodySendMode::None, &[]), response("200", &said)];
    messages.extend(pieces.iter().map(|bytes| piece(bytes, false)));
    messages.extend(ends.then(|| piece("", true)));
    for message in messages {
        assert!(filter.send(ProcessingRequest { observability_mode: true, ..message }));
    }
    assert_eq!(filter.upstream, Upstream::default(), "it is told nothing");
}

#[test]
fn a_filter_that_observes_is_told_nothing_and_counts_answers() {
    let in_force = in_force();
    let mut registry = Registry::default();
    let figures = Figures::new(&mut registry);
    let mut rules = rules(&in_force);
    Arc::get_mut(&mut rules).unwrap().figures = figures;
    observed(&rules, Some("alias-v2"), &[r#"{"usage":{"prompt_tokens":7,"compl"#, r#"etion_tokens":40}}"#], true);
    observed(&rules, Some("alias-v2"), &["data: 1"], false);
    observed(&rules, Some("made up"), &[], true);
    observed(&rules, None, &[], true);
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
    assert_eq!(counted(&in_force), Vec::<String>::new(), "it decides nothing");
}
