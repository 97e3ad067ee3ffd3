//! Streams as sequences of messages, and what an Envoy would have made of the replies.

mod message_order;
mod model_headers;
mod recorded;

use super::*;
use crate::{
    fixtures::{
        active_rules, body, chat, first_message, message, nonzero_metrics, response_headers, rewrite, shared,
        timestamp, trailers,
    },
    proto::{
        BodyMutation, BodySendMode, CommonResponse, HeaderAppendAction, HeadersOrBodyResponse, ImmediateResponse,
        Mutation, ProcessingAction, ProcessingResponse,
    },
};
use proptest::prelude::*;
use prost::Message as _;
use rollora_api::rewrite::RewriteGroup;
use rollora_router::headers::INTERNAL_HEADERS;
use std::collections::VecDeque;

/// What an Envoy has done with a request, as the replies said.
#[derive(Debug, Default, PartialEq, Eq)]
struct UpstreamState {
    body: Vec<u8>,
    end_of_stream: bool,
    removed: Vec<String>,
    set: Vec<(String, String)>,
    response_set: Vec<(String, String)>,
    response_removed: Vec<String>,
    response_body: Vec<u8>,
    refused: Option<(i32, String)>,
    replies: usize,
    route_cache_cleared: bool,
}

/// A filter in front of a processor.
struct FilterSimulator {
    processor: Processor,
    upstream: UpstreamState,
    /// Bodies that wait for the one reply to each.
    unanswered: VecDeque<(Bytes, bool)>,
    duplex: bool,
}

impl FilterSimulator {
    fn new(in_force: &Arc<ActiveRules>) -> Self {
        Self::with_shared(shared(in_force))
    }

    fn with_shared(rules: Arc<ProcessorShared>) -> Self {
        let processor = Processor::new(rules);
        Self { processor, upstream: UpstreamState::default(), unanswered: VecDeque::new(), duplex: false }
    }

    /// Sends one message and takes in what is said to it.
    fn send(&mut self, message: ProcessingRequest) -> bool {
        if let Some(config) = &message.protocol_config {
            self.duplex = config.request_body_mode == BodySendMode::FullDuplexStreamed as i32;
        }
        if let Some(ProcessingEvent::RequestBody(body)) = message.event.as_ref().filter(|_| !self.duplex) {
            self.unanswered.push_back((body.body.clone(), body.end_of_stream));
        }
        let mut replies = ReplyQueue::new();
        let goes_on =
            self.processor.handle_message(message, CallContext { now: timestamp(1), random: 0 }, &mut replies);
        for reply in replies {
            self.upstream.replies += 1;
            self.apply_action(ProcessingResponse::decode(&reply.to_bytes()[..]).unwrap().action.unwrap());
        }
        goes_on
    }

    fn apply_action(&mut self, action: ProcessingAction) {
        assert_eq!(self.upstream.refused, None, "nothing is said behind an answer");
        match action {
            ProcessingAction::RequestHeaders(HeadersOrBodyResponse { response: changes }) => {
                let CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache } =
                    changes.unwrap_or_default();
                assert_eq!(body, None);
                assert!(!clear_route_cache || headers.is_some(), "Envoy ignores it");
                self.upstream.route_cache_cleared |= clear_route_cache;
                apply_header_mutation(headers, &mut self.upstream.set, &mut self.upstream.removed);
                assert!(!self.upstream.set.iter().any(|(name, _)| name == "content-length"), "Envoy answers 500");
            }
            ProcessingAction::RequestBody(HeadersOrBodyResponse { response: changes }) => {
                let CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache } =
                    changes.unwrap_or_default();
                assert!(!clear_route_cache || headers.is_some(), "Envoy ignores it");
                self.upstream.route_cache_cleared |= clear_route_cache;
                apply_header_mutation(headers, &mut self.upstream.set, &mut self.upstream.removed);
                self.apply_body_mutation(body);
            }
            ProcessingAction::RequestTrailers(_) => self.upstream.end_of_stream = true,
            ProcessingAction::ResponseHeaders(HeadersOrBodyResponse { response: changes }) => {
                let CommonResponse { header_mutation: headers, body_mutation: body, .. } = changes.unwrap_or_default();
                assert_eq!(body, None);
                apply_header_mutation(headers, &mut self.upstream.response_set, &mut self.upstream.response_removed);
            }
            ProcessingAction::ResponseBody(HeadersOrBodyResponse { response: changes }) => {
                if let Some(Mutation::StreamedResponse(piece)) =
                    changes.and_then(|changes| changes.body_mutation?.mutation)
                {
                    self.upstream.response_body.extend_from_slice(&piece.body);
                }
            }
            ProcessingAction::ResponseTrailers(_) => {}
            ProcessingAction::ImmediateResponse(ImmediateResponse { status, headers, body, .. }) => {
                let mut set = Vec::new();
                apply_header_mutation(headers, &mut set, &mut Vec::new());
                assert_eq!(set, [("content-type".to_owned(), "application/json".to_owned())]);
                let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(error["error"]["code"], status.unwrap().code);
                let words = error["error"]["message"].as_str().unwrap().to_owned();
                self.upstream.refused = Some((status.unwrap().code, words));
            }
        }
    }

    fn apply_body_mutation(&mut self, body: Option<BodyMutation>) {
        match (body.and_then(|body| body.mutation), self.duplex) {
            (Some(Mutation::StreamedResponse(piece)), true) => {
                assert!(piece.body.len() <= MAX_BODY_CHUNK);
                assert!(!self.upstream.end_of_stream, "nothing comes behind the end");
                self.upstream.body.extend_from_slice(&piece.body);
                self.upstream.end_of_stream = piece.end_of_stream;
            }
            (other, true) => panic!("{other:?} in full duplex"),
            (new, false) => {
                let (sent, end) = self.unanswered.pop_front().expect("one reply for each piece");
                match new {
                    Some(Mutation::Body(bytes)) => self.upstream.body.extend_from_slice(&bytes),
                    Some(Mutation::StreamedResponse(_)) => panic!("streamed where nobody waits for it"),
                    None => self.upstream.body.extend_from_slice(&sent),
                }
                self.upstream.end_of_stream = end;
            }
        }
    }

    fn body(&self) -> &str {
        str::from_utf8(&self.upstream.body).unwrap()
    }
}

/// Takes in a change of headers; every header that is set has to overwrite.
fn apply_header_mutation(mutation: Option<HeaderMutation>, set: &mut Vec<(String, String)>, removed: &mut Vec<String>) {
    let HeaderMutation { set_headers: options, remove_headers: remove } = mutation.unwrap_or_default();
    for option in options {
        assert_eq!(option.append_action, i32::from(HeaderAppendAction::OverwriteIfExistsOrAdd));
        let line = option.header.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        set.push((text(&line.key), text(line.value())));
    }
    removed.extend(remove);
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

const MODES: [BodySendMode; 3] = [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered, BodySendMode::Streamed];

#[test]
fn the_model_is_replaced_in_every_mode() {
    for mode in MODES {
        let in_force = active_rules();
        let mut filter = FilterSimulator::new(&in_force);
        filter.send(chat(mode, &[]));
        assert_eq!(filter.upstream.replies, 1, "headers are answered at once");
        filter.send(body(br#"{"n":1,"model":"alias"}"#, true));
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"n":1,"model":"alias-v2"}"#, true), "{mode:?}");
        let length = if mode == BodySendMode::Buffered { vec![pair("content-length", "26")] } else { vec![] };
        assert_eq!(filter.upstream.set, length, "{mode:?}");
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream.response_set, [pair("x-rollora-target", "alias-v2")]);
        drop(filter);
        assert_eq!(
            nonzero_metrics(&in_force),
            [
                r#"inference_extension_model_rewrite_decisions_total{model_rewrite_name="r",model_name="alias",target_model="alias-v2"} 1"#,
                r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 1"#,
            ]
        );
        assert_eq!(in_force.last_used("alias-v2", timestamp(100)), Some(timestamp(9)), "the end of the stream");
    }
}

#[test]
fn in_full_duplex_everything_goes_on_as_it_comes_but_a_cut_name() {
    let mut filter = FilterSimulator::new(&active_rules());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    for (piece, so_far) in [
        (r#"{"messages":["#, r#"{"messages":["#),
        (r#"],"model":"al"#, r#"{"messages":[],"model":"#),
        ("i", r#"{"messages":[],"model":"#),
        (r#"as","n"#, r#"{"messages":[],"model":"alias-v2","n"#),
        (r#"":1}"#, r#"{"messages":[],"model":"alias-v2","n":1}"#),
    ] {
        filter.send(body(piece.as_bytes(), false));
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (so_far, false));
    }
    filter.send(body(b"", true));
    assert!(filter.upstream.end_of_stream);
}

#[test]
fn a_body_of_any_length_goes_on_in_pieces_that_are_short_enough() {
    let long = "x".repeat(3 * MAX_BODY_CHUNK);
    let mut filter = FilterSimulator::new(&active_rules());
    filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(format!(r#"{{"prompt":"{long}","model":"alias"}}"#).as_bytes(), true));
    assert_eq!(filter.body(), format!(r#"{{"prompt":"{long}","model":"alias-v2"}}"#));
    assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (1 + 4, true));
}

#[test]
fn a_request_without_a_body_passes() {
    for mode in MODES {
        let in_force = active_rules();
        let mut filter = FilterSimulator::new(&in_force);
        filter.send(first_message(Some(mode.into()), &[(":method", "GET"), (":path", "/v1/models")], true));
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream, UpstreamState { replies: 2, ..UpstreamState::default() });
        assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_unrouted_requests_total{reason="NoBody"} 1"#]);
    }
}

#[test]
fn an_empty_body_passes() {
    for mode in MODES {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(b"", true));
        assert_eq!((filter.body(), filter.upstream.end_of_stream, filter.upstream.replies), ("", true, 2), "{mode:?}");
    }
}

#[test]
fn what_no_rule_matches_passes_untouched_in_every_mode() {
    for mode in MODES {
        for (headers, sent) in [
            (&[][..], r#"{"model":"other"}"#),
            (&[], "no JSON"),
            (&[("content-encoding", "gzip")], r#"{"model":"alias"}"#),
            (&[("content-type", "multipart/form-data; boundary=x")], r#"{"model":"alias"}"#),
        ] {
            let mut filter = FilterSimulator::new(&active_rules());
            filter.send(chat(mode, headers));
            filter.send(body(sent.as_bytes(), true));
            filter.send(response_headers("200", &[]));
            let replies = 3;
            let expected = UpstreamState {
                body: sent.as_bytes().to_vec(),
                end_of_stream: true,
                replies,
                ..UpstreamState::default()
            };
            assert_eq!(filter.upstream, expected, "{mode:?} {sent}");
        }
    }
}

#[test]
fn internal_headers_of_a_client_are_removed_whether_a_rule_matches_or_not() {
    let internal: Vec<_> = INTERNAL_HEADERS.into_iter().map(|name| (name, "mine")).collect();
    for mode in MODES {
        for model in ["alias", "other"] {
            let mut filter = FilterSimulator::new(&active_rules());
            filter.send(chat(mode, &[&internal[..], &[("x-session-id", "7"), (TARGET_HEADER, "again")]].concat()));
            filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
            let mut removed = INTERNAL_HEADERS.to_vec();
            removed.sort_unstable();
            assert_eq!(filter.upstream.removed, removed);
        }
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(first_message(
            Some(mode.into()),
            &[(":path", "/v1/models"), ("x-gateway-model-name", "mine")],
            true,
        ));
        assert_eq!(filter.upstream.removed, ["x-gateway-model-name"]);
    }
}

#[test]
fn what_a_server_says_under_our_name_is_replaced_or_removed() {
    for (model, set, removed) in
        [("alias", vec![pair(TARGET_HEADER, "alias-v2")], vec![]), ("other", vec![], vec![TARGET_HEADER.to_owned()])]
    {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
        filter.send(response_headers("404", &[(TARGET_HEADER, "forged")]));
        assert_eq!((&filter.upstream.response_set, &filter.upstream.response_removed), (&set, &removed));
    }
}

#[test]
fn a_closed_path_is_answered_before_its_body_comes() {
    for path in ["/v1/load_lora_adapter", "//v1/load%5Flora_adapter", "/adapters/x"] {
        let in_force = active_rules();
        let mut filter = FilterSimulator::new(&in_force);
        let head = [(":method", "POST"), (":path", path)];
        assert!(!filter.send(first_message(Some(BodySendMode::FullDuplexStreamed.into()), &head, false)));
        let (status, words) = filter.upstream.refused.take().unwrap();
        assert_eq!(
            (status, words.as_str()),
            (403, "this path administrates the model server and is closed to clients")
        );
        assert!(!filter.send(body(b"{}", true)), "nothing is said any more");
        assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (1, false));
        assert_eq!(
            nonzero_metrics(&in_force),
            [r#"rollora_router_refused_requests_total{reason="AdministrationPath"} 1"#]
        );
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused_also_when_much_has_gone_on() {
    for mode in MODES {
        for (sent, status) in [
            (r#"{"model":"alias","model":"alias-v2"}"#, 400),
            (r#"{"model":"other","mod\u0065l":"alias"}"#, 400),
            (r#"{"model":"alias"} {}"#, 400),
            ("{\0\"\0m\0o\0d\0e\0l\0", 415),
        ] {
            let mut filter = FilterSimulator::new(&active_rules());
            filter.send(chat(mode, &[]));
            assert!(!filter.send(body(sent.as_bytes(), true)));
            let answered = filter.upstream.refused.as_ref().map(|(status, _)| *status);
            assert_eq!((answered, filter.upstream.end_of_stream), (Some(status), false), "{mode:?} {sent}");
        }
    }
}

#[test]
fn a_body_that_is_held_whole_may_only_be_so_long() {
    let in_force = active_rules();
    for (length, status) in [(1000, None), (1001, Some(413))] {
        let mut filter = FilterSimulator::new(&in_force);
        filter.send(chat(BodySendMode::Buffered, &[]));
        let prompt = "x".repeat(length - r#"{"model":"alias","x":""}"#.len());
        filter.send(body(format!(r#"{{"model":"alias","x":"{prompt}"}}"#).as_bytes(), true));
        assert_eq!(filter.upstream.refused.map(|(status, _)| status), status);
    }
    let refused = r#"rollora_router_refused_requests_total{reason="TooLarge"} 1"#;
    assert!(nonzero_metrics(&in_force).contains(&refused.to_owned()));
}

#[test]
fn a_filter_that_shows_only_a_part_of_bodies_is_refused_with_words() {
    for mode in [BodySendMode::BufferedPartial.into(), BodySendMode::Grpc.into(), 99] {
        let mut filter = FilterSimulator::new(&active_rules());
        assert!(!filter.send(first_message(Some(mode), &[(":path", "/v1/chat/completions")], false)));
        let (status, words) = filter.upstream.refused.unwrap();
        assert_eq!(status, 500);
        assert!(words.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{words}");
    }
}

#[test]
fn a_filter_that_does_not_show_bodies_passes_them_as_unreadable() {
    let in_force = active_rules();
    let mut filter = FilterSimulator::new(&in_force);
    filter.send(chat(BodySendMode::None, &[("x-gateway-model-name-rewrite", "mine")]));
    filter.send(response_headers("200", &[]));
    assert_eq!(
        (filter.upstream.removed, filter.upstream.response_set),
        (vec!["x-gateway-model-name-rewrite".to_owned()], vec![])
    );
    assert_eq!(nonzero_metrics(&in_force), [r#"rollora_router_unrouted_requests_total{reason="Unreadable"} 1"#]);
}

#[test]
fn a_data_plane_that_does_not_tell_its_mode_is_taken_for_full_duplex() {
    let mut filter = FilterSimulator::new(&active_rules());
    filter.duplex = true;
    filter.send(first_message(None, &[(":path", "/v1/chat/completions")], false));
    filter.send(body(br#"{"model":"alias"}"#, true));
    assert_eq!(filter.body(), r#"{"model":"alias-v2"}"#);
}

#[test]
fn a_body_that_ends_with_trailers_has_ended() {
    for mode in MODES {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(br#"{"model":"alias"}"#, false));
        filter.send(trailers());
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"model":"alias-v2"}"#, true), "{mode:?}");
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(br#"{"model":"alias","#, false));
        filter.send(trailers());
        assert_eq!(filter.upstream.refused.map(|(status, _)| status), Some(400), "{mode:?}");
    }
}

#[test]
fn a_name_that_trailers_cut_off_goes_on_where_there_is_a_way() {
    let cut_off = |mode| {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(br#"{"model":"al"#, false));
        filter.send(trailers());
        filter
    };
    let filter = cut_off(BodySendMode::FullDuplexStreamed);
    assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"model":"al"#, true));
    let filter = cut_off(BodySendMode::Streamed);
    assert_eq!(filter.upstream.refused.map(|(status, _)| status), Some(400));
}

#[test]
fn bodies_and_trailers_of_responses_pass_as_they_are() {
    let response_body = |bytes: &'static [u8]| {
        message(ProcessingEvent::ResponseBody(HttpBody { body: Bytes::from_static(bytes), end_of_stream: false }))
    };
    let mut filter = FilterSimulator::new(&active_rules());
    let mut head = chat(BodySendMode::FullDuplexStreamed, &[]);
    head.protocol_config.as_mut().unwrap().response_body_mode = BodySendMode::FullDuplexStreamed.into();
    filter.send(head);
    filter.send(body(br#"{"model":"alias"}"#, true));
    filter.send(response_headers("200", &[]));
    filter.send(response_body(b"data: 1\n\n"));
    filter.send(response_body(b"data: 2\n\n"));
    assert_eq!(filter.upstream.response_body, b"data: 1\n\ndata: 2\n\n");
    let before = filter.upstream.replies;
    filter.send(message(ProcessingEvent::ResponseTrailers(crate::proto::HttpTrailers {})));
    assert_eq!(filter.upstream.replies, before + 1);
}

#[test]
fn how_a_request_went_follows_from_the_response_and_from_nothing_else() {
    for (status, code) in [(Some("200"), "2xx"), (Some("404"), "4xx"), (Some("503"), "5xx"), (None, "none")] {
        let in_force = active_rules();
        let mut filter = FilterSimulator::new(&in_force);
        filter.send(chat(BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(br#"{"model":"alias"}"#, true));
        if let Some(status) = status {
            filter.send(response_headers(status, &[]));
        }
        drop(filter);
        let line = format!(r#"rollora_router_requests_total{{rewrite="ns/r",target="alias-v2",code="{code}"}} 1"#);
        assert!(nonzero_metrics(&in_force).contains(&line), "{line}");
    }
}

/// Bodies that are JSON for a while, with and without what the rules match.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        ",",
        ":",
        "\"",
        "\\",
        "\"model\"",
        "\"mod\\u0065l\"",
        "\"alias\"",
        "\"other\"",
        "{\"model\":\"alias\"",
        "{\"model\":\"other\"",
        "{\"a\":1",
        ",\"model\":",
        " ",
        "1",
        "null",
        "é",
    ]);
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat().into_bytes())
}

fn generic_rules() -> Arc<ActiveRules> {
    let in_force = active_rules();
    let mut rewrite = rewrite(RewriteGroup::Legacy, "any", "", &[("base", 1)]);
    rewrite.spec.rules[0].matches.clear();
    in_force.apply(&rewrite);
    in_force
}

proptest! {
    #[test]
    fn any_cut_of_a_body_gives_the_same_in_every_mode(
        sent in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        all in any::<bool>(),
        ends_late in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.sort_unstable();
        let rules = || if all { generic_rules() } else { active_rules() };
        let finished = |filter: FilterSimulator| {
            // What has gone on of a body that was refused never ends.
            let passed = filter.upstream.refused.is_none();
            assert_eq!(filter.upstream.end_of_stream, passed);
            (filter.upstream.refused, passed.then_some(filter.upstream.body))
        };
        let mut whole = FilterSimulator::new(&rules());
        whole.send(chat(BodySendMode::Buffered, &[]));
        whole.send(body(&sent, true));
        let expected = finished(whole);
        for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Streamed] {
            let mut filter = FilterSimulator::new(&rules());
            filter.send(chat(mode, &[]));
            let mut start = 0;
            for end in &cuts {
                filter.send(body(&sent[start..*end], false));
                start = *end;
            }
            filter.send(body(&sent[start..], !ends_late));
            if ends_late {
                filter.send(body(b"", true));
            }
            prop_assert_eq!(finished(filter), expected.clone(), "{:?}", mode);
        }
    }

    /// Whatever is sent in whatever order, it is answered without a panic, and nothing is left over.
    #[test]
    fn any_order_of_messages_ends_well(
        mode in 0..7_i32,
        events in prop::collection::vec((0..6_u8, any_body(), any::<bool>()), 0..8),
    ) {
        let in_force = generic_rules();
        let mut processor = Processor::new(shared(&in_force));
        for (event, bytes, flag) in events {
            let message = match event {
                0 => first_message(Some(mode), &[(":path", "/v1/chat/completions")], flag),
                1 => body(&bytes, flag),
                2 => trailers(),
                3 => response_headers(if flag { "200" } else { "x" }, &[]),
                4 => message(ProcessingEvent::ResponseBody(HttpBody { body: bytes.into(), end_of_stream: flag })),
                _ => ProcessingRequest::default(),
            };
            processor.handle_message(message, CallContext { now: timestamp(1), random: u64::MAX }, &mut ReplyQueue::new());
        }
        drop(processor);
        prop_assert!(!nonzero_metrics(&in_force).iter().any(|line| line.contains("in_flight")));
    }
}
