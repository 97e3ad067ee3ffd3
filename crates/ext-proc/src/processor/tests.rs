//! Streams as sequences of messages, and what Envoy makes of the replies.

mod message_order;
mod model_headers;
mod recorded;

use super::*;
use crate::{
    fixtures::{
        active_rules, body, chat, first_message, message, nonzero_metrics, response_headers, rewrite, shared,
        timestamp, trailers,
    },
    proto,
};
use proptest::prelude::*;
use prost::Message as _;
use rollora_api::rewrite::RewriteGroup;
use rollora_router::headers::INTERNAL_HEADERS;
use std::collections::VecDeque;

/// What Envoy has forwarded and changed, according to the replies.
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

/// Simulates Envoy's filter in front of a processor.
struct FilterSimulator {
    processor: Processor,
    upstream: UpstreamState,
    /// Body messages that still need their reply.
    unanswered: VecDeque<(Bytes, bool)>,
    duplex: bool,
}

impl FilterSimulator {
    fn new(active_rules: &Arc<ActiveRules>) -> Self {
        Self::with_shared(shared(active_rules))
    }

    fn with_shared(shared: Arc<ProcessorShared>) -> Self {
        let processor = Processor::new(shared);
        Self { processor, upstream: UpstreamState::default(), unanswered: VecDeque::new(), duplex: false }
    }

    /// Sends one message and applies the replies. Returns whether the stream continues.
    fn send(&mut self, message: proto::ProcessingRequest) -> bool {
        if let Some(config) = &message.protocol_config {
            self.duplex = config.request_body_mode == proto::BodySendMode::FullDuplexStreamed as i32;
        }
        if let Some(proto::ProcessingEvent::RequestBody(body)) = message.event.as_ref().filter(|_| !self.duplex) {
            self.unanswered.push_back((body.body.clone(), body.end_of_stream));
        }
        let mut replies = ReplyQueue::new();
        let continues =
            self.processor.handle_message(message, CallContext { now: timestamp(1), random: 0 }, &mut replies);
        for reply in replies {
            self.upstream.replies += 1;
            self.apply_action(proto::ProcessingResponse::decode(&reply.to_bytes()[..]).unwrap().action.unwrap());
        }
        continues
    }

    fn apply_action(&mut self, action: proto::ProcessingAction) {
        assert_eq!(self.upstream.refused, None, "reply after an immediate response");
        match action {
            proto::ProcessingAction::RequestHeaders(proto::HeadersOrBodyResponse { response }) => {
                let proto::CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache } =
                    response.unwrap_or_default();
                assert_eq!(body, None);
                assert!(!clear_route_cache || headers.is_some(), "Envoy ignores clear_route_cache without changes");
                self.upstream.route_cache_cleared |= clear_route_cache;
                apply_header_mutation(headers, &mut self.upstream.set, &mut self.upstream.removed);
                assert!(!self.upstream.set.iter().any(|(name, _)| name == "content-length"), "Envoy responds with 500");
            }
            proto::ProcessingAction::RequestBody(proto::HeadersOrBodyResponse { response }) => {
                let proto::CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache } =
                    response.unwrap_or_default();
                assert!(!clear_route_cache || headers.is_some(), "Envoy ignores clear_route_cache without changes");
                self.upstream.route_cache_cleared |= clear_route_cache;
                apply_header_mutation(headers, &mut self.upstream.set, &mut self.upstream.removed);
                self.apply_body_mutation(body);
            }
            proto::ProcessingAction::RequestTrailers(_) => self.upstream.end_of_stream = true,
            proto::ProcessingAction::ResponseHeaders(proto::HeadersOrBodyResponse { response }) => {
                let proto::CommonResponse { header_mutation: headers, body_mutation: body, .. } =
                    response.unwrap_or_default();
                assert_eq!(body, None);
                apply_header_mutation(headers, &mut self.upstream.response_set, &mut self.upstream.response_removed);
            }
            proto::ProcessingAction::ResponseBody(proto::HeadersOrBodyResponse { response }) => {
                if let Some(proto::Mutation::StreamedResponse(chunk)) =
                    response.and_then(|response| response.body_mutation?.mutation)
                {
                    self.upstream.response_body.extend_from_slice(&chunk.body);
                }
            }
            proto::ProcessingAction::ResponseTrailers(_) => {}
            proto::ProcessingAction::ImmediateResponse(proto::ImmediateResponse { status, headers, body, .. }) => {
                let mut set = Vec::new();
                apply_header_mutation(headers, &mut set, &mut Vec::new());
                assert_eq!(set, [("content-type".to_owned(), "application/json".to_owned())]);
                let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(error["error"]["code"], status.unwrap().code);
                let message = error["error"]["message"].as_str().unwrap().to_owned();
                self.upstream.refused = Some((status.unwrap().code, message));
            }
        }
    }

    fn apply_body_mutation(&mut self, body: Option<proto::BodyMutation>) {
        match (body.and_then(|body| body.mutation), self.duplex) {
            (Some(proto::Mutation::StreamedResponse(chunk)), true) => {
                assert!(chunk.body.len() <= MAX_BODY_CHUNK);
                assert!(!self.upstream.end_of_stream, "chunk after the end of the body");
                self.upstream.body.extend_from_slice(&chunk.body);
                self.upstream.end_of_stream = chunk.end_of_stream;
            }
            (other, true) => panic!("{other:?} in full duplex"),
            (new, false) => {
                let (sent, end) = self.unanswered.pop_front().expect("one reply per body message");
                match new {
                    Some(proto::Mutation::Body(bytes)) => self.upstream.body.extend_from_slice(&bytes),
                    Some(proto::Mutation::StreamedResponse(_)) => {
                        panic!("streamed response outside of full duplex mode")
                    }
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

/// Applies a change of headers; every header that is set must overwrite.
fn apply_header_mutation(
    mutation: Option<proto::HeaderMutation>,
    set: &mut Vec<(String, String)>,
    removed: &mut Vec<String>,
) {
    let proto::HeaderMutation { set_headers: options, remove_headers: remove } = mutation.unwrap_or_default();
    for option in options {
        assert_eq!(option.append_action, i32::from(proto::HeaderAppendAction::OverwriteIfExistsOrAdd));
        let header = option.header.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        set.push((text(&header.key), text(header.value())));
    }
    removed.extend(remove);
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

const MODES: [proto::BodySendMode; 3] =
    [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Buffered, proto::BodySendMode::Streamed];

#[test]
fn model_is_replaced_in_every_mode() {
    for mode in MODES {
        let active_rules = active_rules();
        let mut filter = FilterSimulator::new(&active_rules);
        filter.send(chat(mode, &[]));
        assert_eq!(filter.upstream.replies, 1, "headers are answered immediately");
        filter.send(body(br#"{"n":1,"model":"alias"}"#, true));
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"n":1,"model":"alias-v2"}"#, true), "{mode:?}");
        let length = if mode == proto::BodySendMode::Buffered { vec![pair("content-length", "26")] } else { vec![] };
        assert_eq!(filter.upstream.set, length, "{mode:?}");
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream.response_set, [pair("x-rollora-target", "alias-v2")]);
        drop(filter);
        assert_eq!(
            nonzero_metrics(&active_rules),
            [
                r#"inference_extension_model_rewrite_decisions_total{model_rewrite_name="r",model_name="alias",target_model="alias-v2"} 1"#,
                r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 1"#,
            ]
        );
        assert_eq!(
            active_rules.last_used("alias-v2", timestamp(100)),
            Some(timestamp(9)),
            "last use is the end of the stream"
        );
    }
}

#[test]
fn full_duplex_buffers_only_an_incomplete_name() {
    let mut filter = FilterSimulator::new(&active_rules());
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    for (chunk, so_far) in [
        (r#"{"messages":["#, r#"{"messages":["#),
        (r#"],"model":"al"#, r#"{"messages":[],"model":"#),
        ("i", r#"{"messages":[],"model":"#),
        (r#"as","n"#, r#"{"messages":[],"model":"alias-v2","n"#),
        (r#"":1}"#, r#"{"messages":[],"model":"alias-v2","n":1}"#),
    ] {
        filter.send(body(chunk.as_bytes(), false));
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (so_far, false));
    }
    filter.send(body(b"", true));
    assert!(filter.upstream.end_of_stream);
}

#[test]
fn long_body_is_forwarded_in_chunks_below_the_limit() {
    let long = "x".repeat(3 * MAX_BODY_CHUNK);
    let mut filter = FilterSimulator::new(&active_rules());
    filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
    filter.send(body(format!(r#"{{"prompt":"{long}","model":"alias"}}"#).as_bytes(), true));
    assert_eq!(filter.body(), format!(r#"{{"prompt":"{long}","model":"alias-v2"}}"#));
    assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (1 + 4, true));
}

#[test]
fn request_without_body_is_forwarded() {
    for mode in MODES {
        let active_rules = active_rules();
        let mut filter = FilterSimulator::new(&active_rules);
        filter.send(first_message(Some(mode.into()), &[(":method", "GET"), (":path", "/v1/models")], true));
        filter.send(response_headers("200", &[]));
        assert_eq!(filter.upstream, UpstreamState { replies: 2, ..UpstreamState::default() });
        assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_unrouted_requests_total{reason="NoBody"} 1"#]);
    }
}

#[test]
fn empty_body_is_forwarded() {
    for mode in MODES {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(b"", true));
        assert_eq!((filter.body(), filter.upstream.end_of_stream, filter.upstream.replies), ("", true, 2), "{mode:?}");
    }
}

#[test]
fn request_without_rule_is_unchanged_in_every_mode() {
    for mode in MODES {
        for (headers, sent) in [
            (&[][..], r#"{"model":"other"}"#),
            (&[], "not JSON"),
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
fn internal_headers_of_clients_are_always_removed() {
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
fn target_header_of_server_is_replaced_or_removed() {
    for (model, set, removed) in
        [("alias", vec![pair(TARGET_HEADER, "alias-v2")], vec![]), ("other", vec![], vec![TARGET_HEADER.to_owned()])]
    {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(format!(r#"{{"model":"{model}"}}"#).as_bytes(), true));
        filter.send(response_headers("404", &[(TARGET_HEADER, "forged")]));
        assert_eq!((&filter.upstream.response_set, &filter.upstream.response_removed), (&set, &removed));
    }
}

#[test]
fn closed_path_is_refused_before_its_body_arrives() {
    for path in ["/v1/load_lora_adapter", "//v1/load%5Flora_adapter", "/adapters/x"] {
        let active_rules = active_rules();
        let mut filter = FilterSimulator::new(&active_rules);
        let head = [(":method", "POST"), (":path", path)];
        assert!(!filter.send(first_message(Some(proto::BodySendMode::FullDuplexStreamed.into()), &head, false)));
        let (status, message) = filter.upstream.refused.take().unwrap();
        assert_eq!(
            (status, message.as_str()),
            (403, "this path administers the model server and is closed to clients")
        );
        assert!(!filter.send(body(b"{}", true)), "no reply after an immediate response");
        assert_eq!((filter.upstream.replies, filter.upstream.end_of_stream), (1, false));
        assert_eq!(
            nonzero_metrics(&active_rules),
            [r#"rollora_router_refused_requests_total{reason="AdministrationPath"} 1"#]
        );
    }
}

#[test]
fn ambiguous_body_is_refused_even_after_forwarding() {
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
            let refused = filter.upstream.refused.as_ref().map(|(status, _)| *status);
            assert_eq!((refused, filter.upstream.end_of_stream), (Some(status), false), "{mode:?} {sent}");
        }
    }
}

#[test]
fn buffered_body_is_refused_above_its_limit() {
    let active_rules = active_rules();
    for (length, status) in [(1000, None), (1001, Some(413))] {
        let mut filter = FilterSimulator::new(&active_rules);
        filter.send(chat(proto::BodySendMode::Buffered, &[]));
        let prompt = "x".repeat(length - r#"{"model":"alias","x":""}"#.len());
        filter.send(body(format!(r#"{{"model":"alias","x":"{prompt}"}}"#).as_bytes(), true));
        assert_eq!(filter.upstream.refused.map(|(status, _)| status), status);
    }
    let refused = r#"rollora_router_refused_requests_total{reason="TooLarge"} 1"#;
    assert!(nonzero_metrics(&active_rules).contains(&refused.to_owned()));
}

#[test]
fn unsupported_body_mode_is_refused_with_a_remedy() {
    for mode in [proto::BodySendMode::BufferedPartial.into(), proto::BodySendMode::Grpc.into(), 99] {
        let mut filter = FilterSimulator::new(&active_rules());
        assert!(!filter.send(first_message(Some(mode), &[(":path", "/v1/chat/completions")], false)));
        let (status, message) = filter.upstream.refused.unwrap();
        assert_eq!(status, 500);
        assert!(message.contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"), "{message}");
    }
}

#[test]
fn invisible_body_is_counted_as_unreadable() {
    let active_rules = active_rules();
    let mut filter = FilterSimulator::new(&active_rules);
    filter.send(chat(proto::BodySendMode::None, &[("x-gateway-model-name-rewrite", "mine")]));
    filter.send(response_headers("200", &[]));
    assert_eq!(
        (filter.upstream.removed, filter.upstream.response_set),
        (vec!["x-gateway-model-name-rewrite".to_owned()], vec![])
    );
    assert_eq!(nonzero_metrics(&active_rules), [r#"rollora_router_unrouted_requests_total{reason="Unreadable"} 1"#]);
}

#[test]
fn missing_mode_is_treated_as_full_duplex() {
    let mut filter = FilterSimulator::new(&active_rules());
    filter.duplex = true;
    filter.send(first_message(None, &[(":path", "/v1/chat/completions")], false));
    filter.send(body(br#"{"model":"alias"}"#, true));
    assert_eq!(filter.body(), r#"{"model":"alias-v2"}"#);
}

#[test]
fn trailers_end_the_body() {
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
fn incomplete_name_before_trailers_is_forwarded_or_refused() {
    let send_incomplete_name = |mode| {
        let mut filter = FilterSimulator::new(&active_rules());
        filter.send(chat(mode, &[]));
        filter.send(body(br#"{"model":"al"#, false));
        filter.send(trailers());
        filter
    };
    let filter = send_incomplete_name(proto::BodySendMode::FullDuplexStreamed);
    assert_eq!((filter.body(), filter.upstream.end_of_stream), (r#"{"model":"al"#, true));
    let filter = send_incomplete_name(proto::BodySendMode::Streamed);
    assert_eq!(filter.upstream.refused.map(|(status, _)| status), Some(400));
}

#[test]
fn response_bodies_and_trailers_stay_unchanged() {
    let response_body = |bytes: &'static [u8]| {
        message(proto::ProcessingEvent::ResponseBody(proto::HttpBody {
            body: Bytes::from_static(bytes),
            end_of_stream: false,
        }))
    };
    let mut filter = FilterSimulator::new(&active_rules());
    let mut head = chat(proto::BodySendMode::FullDuplexStreamed, &[]);
    head.protocol_config.as_mut().unwrap().response_body_mode = proto::BodySendMode::FullDuplexStreamed.into();
    filter.send(head);
    filter.send(body(br#"{"model":"alias"}"#, true));
    filter.send(response_headers("200", &[]));
    filter.send(response_body(b"data: 1\n\n"));
    filter.send(response_body(b"data: 2\n\n"));
    assert_eq!(filter.upstream.response_body, b"data: 1\n\ndata: 2\n\n");
    let before = filter.upstream.replies;
    filter.send(message(proto::ProcessingEvent::ResponseTrailers(proto::HttpTrailers {})));
    assert_eq!(filter.upstream.replies, before + 1);
}

#[test]
fn outcome_is_counted_from_the_response_alone() {
    for (status, code) in [(Some("200"), "2xx"), (Some("404"), "4xx"), (Some("503"), "5xx"), (None, "none")] {
        let active_rules = active_rules();
        let mut filter = FilterSimulator::new(&active_rules);
        filter.send(chat(proto::BodySendMode::FullDuplexStreamed, &[]));
        filter.send(body(br#"{"model":"alias"}"#, true));
        if let Some(status) = status {
            filter.send(response_headers(status, &[]));
        }
        drop(filter);
        let line = format!(r#"rollora_router_requests_total{{rewrite="ns/r",target="alias-v2",code="{code}"}} 1"#);
        assert!(nonzero_metrics(&active_rules).contains(&line), "{line}");
    }
}

/// Generates bodies that start as JSON, with and without a model that the rules match.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let chunk = prop::sample::select(vec![
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
    prop::collection::vec(chunk, 0..10).prop_map(|parts| parts.concat().into_bytes())
}

fn generic_rules() -> Arc<ActiveRules> {
    let active_rules = active_rules();
    let mut rewrite = rewrite(RewriteGroup::Legacy, "any", "", &[("base", 1)]);
    rewrite.spec.rules[0].matches.clear();
    active_rules.apply(&rewrite);
    active_rules
}

proptest! {
    #[test]
    fn every_chunking_gives_one_result_in_every_mode(
        sent in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        all in any::<bool>(),
        ends_late in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.sort_unstable();
        let rules = || if all { generic_rules() } else { active_rules() };
        let finished = |filter: FilterSimulator| {
            // The forwarded part of a refused body never ends.
            let is_forwarded = filter.upstream.refused.is_none();
            assert_eq!(filter.upstream.end_of_stream, is_forwarded);
            (filter.upstream.refused, is_forwarded.then_some(filter.upstream.body))
        };
        let mut whole = FilterSimulator::new(&rules());
        whole.send(chat(proto::BodySendMode::Buffered, &[]));
        whole.send(body(&sent, true));
        let expected = finished(whole);
        for mode in [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Streamed] {
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

    /// Messages in any order cause no panic, and no request stays in flight.
    #[test]
    fn any_order_of_messages_leaves_nothing_in_flight(
        mode in 0..7_i32,
        events in prop::collection::vec((0..6_u8, any_body(), any::<bool>()), 0..8),
    ) {
        let active_rules = generic_rules();
        let mut processor = Processor::new(shared(&active_rules));
        for (event, bytes, flag) in events {
            let message = match event {
                0 => first_message(Some(mode), &[(":path", "/v1/chat/completions")], flag),
                1 => body(&bytes, flag),
                2 => trailers(),
                3 => response_headers(if flag { "200" } else { "x" }, &[]),
                4 => {
                    let body = proto::HttpBody { body: bytes.into(), end_of_stream: flag };
                    message(proto::ProcessingEvent::ResponseBody(body))
                }
                _ => proto::ProcessingRequest::default(),
            };
            let context = CallContext { now: timestamp(1), random: u64::MAX };
            processor.handle_message(message, context, &mut ReplyQueue::new());
        }
        drop(processor);
        prop_assert!(!nonzero_metrics(&active_rules).iter().any(|line| line.contains("in_flight")));
    }
}
