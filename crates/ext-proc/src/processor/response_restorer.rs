//! Restores the requested model name in responses, if the filter shows their bodies.
//!
//! | mode of the response body | body |
//! |---|---|
//! | `FULL_DUPLEX_STREAMED` | forwarded as it arrives, in chunks |
//! | `STREAMED` | one reply for each chunk, in order |
//! | `BUFFERED` | whole, with its new `content-length` |
//! | others | not visible: the response keeps the name of the target |

use super::{ProcessorRefusal, ReplyQueue, body_mode::BodyMode, push_body_chunks};
use crate::proto::{self, Direction, ProcessorReply};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use rollora_router::{exchange::Exchange, refusal::RequestRefusal, restore::Restorer};

/// Restorer for the body of one response.
#[derive(Debug)]
pub(super) struct ResponseRestorer(Restorer);

impl ResponseRestorer {
    /// Creates a restorer. `None` if a response with these headers must stay unchanged.
    pub(super) fn new(mode: BodyMode, exchange: &Exchange, headers: &proto::HeaderMap) -> Option<Self> {
        matches!(mode, BodyMode::FullDuplexStreamed | BodyMode::Streamed | BodyMode::Buffered)
            .then(|| exchange.restorer(headers).map(Self))
            .flatten()
    }

    pub(super) fn handle_body(&mut self, mode: BodyMode, message: &proto::HttpBody, replies: &mut ReplyQueue) {
        let mut slices = Vec::with_capacity(4);
        self.0.push(&message.body, &mut slices);
        if message.end_of_stream || mode == BodyMode::Buffered {
            self.0.finish(&mut slices);
        }
        if mode == BodyMode::FullDuplexStreamed {
            return push_body_chunks(Direction::Response, slices, message.end_of_stream, replies);
        }
        let body = Bytes::from(slices.concat());
        if body == message.body {
            return replies.push_back(ProcessorReply::response_body());
        }
        let length = (mode == BodyMode::Buffered).then(|| Bytes::from(body.len().to_string()));
        let headers = length.map(|length| proto::HeaderMutation::overwrite([(CONTENT_LENGTH, length)]));
        replies.push_back(ProcessorReply::response_body_replaced(body, headers));
    }

    /// Handles trailers, which end a body whose last chunk did not have `end_of_stream`.
    pub(super) fn handle_trailers(&mut self, mode: BodyMode, replies: &mut ReplyQueue) -> Result<(), ProcessorRefusal> {
        let mut slices = Vec::new();
        self.0.finish(&mut slices);
        match mode {
            // No reply is left that could carry an incomplete name.
            BodyMode::Streamed if !slices.is_empty() => Err(RequestRefusal::MalformedBody.into()),
            _ => {
                push_body_chunks(Direction::Response, slices, false, replies);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        fixtures::{active_rules, body, chat, message, response_headers, shared_with, trailers},
        processor::{CallContext, Processor, ReplyQueue, RewriteOptions},
        proto::{self, ProcessorReply},
    };
    use bytes::Bytes;
    use prost::Message as _;

    const CONTEXT: CallContext = CallContext { now: jiff::Timestamp::UNIX_EPOCH, random: 0 };
    const JSON: (&str, &str) = ("content-type", "application/json");
    const EVENT_STREAM: (&str, &str) = ("content-type", "text/event-stream");

    fn processor_at_response(mode: proto::BodySendMode, restore_model: bool, headers: &[(&str, &str)]) -> Processor {
        let rewrite = RewriteOptions { restore_model, ..RewriteOptions::default() };
        let mut processor = Processor::new(shared_with(&active_rules(), rewrite));
        let mut first = chat(proto::BodySendMode::FullDuplexStreamed, &[]);
        first.protocol_config.as_mut().unwrap().response_body_mode = mode.into();
        let mut replies = ReplyQueue::new();
        for message in [first, body(br#"{"model":"alias"}"#, false), trailers(), response_headers("200", headers)] {
            assert!(processor.handle_message(message, CONTEXT, &mut replies));
        }
        processor
    }

    fn response_body(bytes: &[u8], end_of_stream: bool) -> proto::ProcessingEvent {
        proto::ProcessingEvent::ResponseBody(proto::HttpBody { body: Bytes::copy_from_slice(bytes), end_of_stream })
    }

    /// Sends an event and returns the replies as Envoy decodes them.
    fn reply_actions(processor: &mut Processor, event: proto::ProcessingEvent) -> Vec<proto::ProcessingAction> {
        let mut replies = ReplyQueue::new();
        processor.handle_message(message(event), CONTEXT, &mut replies);
        let read =
            |reply: ProcessorReply| proto::ProcessingResponse::decode(&reply.to_bytes()[..]).unwrap().action.unwrap();
        replies.into_iter().map(read).collect()
    }

    /// Returns the body that Envoy forwards after this reply to `sent`, and whether it is the end.
    fn forwarded_body(action: &proto::ProcessingAction, sent: &[u8]) -> (String, bool) {
        let proto::ProcessingAction::ResponseBody(reply) = action else { panic!("{action:?}") };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match reply.response.as_ref().and_then(|response| response.body_mutation.as_ref()?.mutation.as_ref()) {
            Some(proto::Mutation::StreamedResponse(chunk)) => (text(&chunk.body), chunk.end_of_stream),
            Some(proto::Mutation::Body(body)) => (text(body), false),
            None => (text(sent), false),
        }
    }

    #[test]
    fn stream_is_forwarded_with_the_requested_name() {
        let mut processor = processor_at_response(proto::BodySendMode::FullDuplexStreamed, true, &[EVENT_STREAM]);
        for (sent, end, expected) in [
            ("data: {\"model\":\"alias-v2\"}\n\n", false, "data: {\"model\":\"alias\"}\n\n"),
            ("data: {\"model\" : \"alias", false, "data: {\"model\" : "),
            ("-v2\"}\n\n", false, "\"alias\"}\n\n"),
            ("data: [DONE]\n\n", true, "data: [DONE]\n\n"),
        ] {
            let actions = reply_actions(&mut processor, response_body(sent.as_bytes(), end));
            assert_eq!(actions.len(), 1, "{actions:?}");
            assert_eq!(forwarded_body(&actions[0], sent.as_bytes()), (expected.to_owned(), end));
        }
    }

    #[test]
    fn streamed_chunks_have_one_reply_each() {
        let mut processor = processor_at_response(proto::BodySendMode::Streamed, true, &[JSON]);
        for (sent, end, expected) in [
            ("{\"model\":\"ali", false, "{\"model\":"),
            ("as-v2", false, ""),
            ("\"}", false, "\"alias\"}"),
            ("", true, ""),
        ] {
            let actions = reply_actions(&mut processor, response_body(sent.as_bytes(), end));
            assert_eq!(actions.len(), 1, "{actions:?}");
            assert_eq!(forwarded_body(&actions[0], sent.as_bytes()).0, expected);
        }
    }

    #[test]
    fn buffered_response_has_its_new_length() {
        let mut processor = processor_at_response(proto::BodySendMode::Buffered, true, &[JSON]);
        let sent = br#"{"model":"alias-v2"}"#;
        let actions = reply_actions(&mut processor, response_body(sent, true));
        assert_eq!(forwarded_body(&actions[0], sent).0, r#"{"model":"alias"}"#);
        let proto::ProcessingAction::ResponseBody(reply) = &actions[0] else { panic!("{actions:?}") };
        let headers = reply.response.as_ref().unwrap().header_mutation.as_ref().unwrap();
        let line = headers.set_headers[0].header.as_ref().unwrap();
        assert_eq!((&line.key[..], line.value()), (&b"content-length"[..], &b"17"[..]));
    }

    #[test]
    fn buffered_bytes_are_forwarded_before_trailers() {
        let mut processor = processor_at_response(proto::BodySendMode::FullDuplexStreamed, true, &[JSON]);
        reply_actions(&mut processor, response_body(b"{\"model\":\"ali", false));
        let actions = reply_actions(&mut processor, proto::ProcessingEvent::ResponseTrailers(proto::HttpTrailers {}));
        assert_eq!(forwarded_body(&actions[0], b"").0, "\"ali");
        assert!(matches!(actions[1], proto::ProcessingAction::ResponseTrailers(_)));
        let mut processor = processor_at_response(proto::BodySendMode::Streamed, true, &[JSON]);
        reply_actions(&mut processor, response_body(b"{\"model\":\"ali", false));
        let actions = reply_actions(&mut processor, proto::ProcessingEvent::ResponseTrailers(proto::HttpTrailers {}));
        assert!(matches!(actions[..], [proto::ProcessingAction::ImmediateResponse(_)]), "{actions:?}");
    }

    #[test]
    fn other_responses_stay_unchanged() {
        let sent = br#"{"model":"alias-v2"}"#;
        for (restore, headers) in [
            (false, vec![JSON]),
            (true, vec![("content-type", "text/plain")]),
            (true, vec![JSON, ("content-encoding", "br")]),
            (true, vec![]),
        ] {
            for mode in
                [proto::BodySendMode::FullDuplexStreamed, proto::BodySendMode::Streamed, proto::BodySendMode::Buffered]
            {
                let mut processor = processor_at_response(mode, restore, &headers);
                let actions = reply_actions(&mut processor, response_body(sent, true));
                assert_eq!(forwarded_body(&actions[0], sent).0.as_bytes(), sent, "{mode:?} {headers:?}");
            }
        }
    }
}
