//! The client's name in answers, where the filter is set up to show them here.
//!
//! | mode of the response's body | body |
//! |---|---|
//! | `FULL_DUPLEX_STREAMED` | goes on as it comes, in pieces |
//! | `STREAMED` | one reply for each piece, in order |
//! | `BUFFERED` | as a whole, with its new `content-length` |
//! | others | not seen: the answer keeps the version's name |

use super::{Refused, Replies, mode::Mode, parts};
use crate::protocol::{Direction, HeaderMap, HeaderMutation, HttpBody, Reply};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use rollora_router::{exchange::Exchange, refusal::Refusal, restore::Restorer};

/// The body of one answer.
#[derive(Debug)]
pub(super) struct Restoring(Restorer);

impl Restoring {
    /// None where there is nothing to restore in an answer under these headers.
    pub(super) fn begin(mode: Mode, exchange: &Exchange, headers: &HeaderMap) -> Option<Self> {
        matches!(mode, Mode::Duplex | Mode::Streamed | Mode::Buffered)
            .then(|| exchange.restorer(headers).map(Self))
            .flatten()
    }

    pub(super) fn body(&mut self, mode: Mode, message: &HttpBody, replies: &mut Replies) {
        let mut slices = Vec::with_capacity(4);
        self.0.piece(&message.body, &mut slices);
        if message.end_of_stream || mode == Mode::Buffered {
            self.0.end(&mut slices);
        }
        if mode == Mode::Duplex {
            return parts(Direction::Response, slices, message.end_of_stream, replies);
        }
        let body = Bytes::from(slices.concat());
        if body == message.body {
            return replies.push_back(Reply::response_body());
        }
        let length = (mode == Mode::Buffered).then(|| Bytes::from(body.len().to_string()));
        let headers = length.map(|length| HeaderMutation::setting([(CONTENT_LENGTH, length)]));
        replies.push_back(Reply::response_body_changed(body, headers));
    }

    /// The body has ended, and no piece of it has said so.
    pub(super) fn trailers(&mut self, mode: Mode, replies: &mut Replies) -> Result<(), Refused> {
        let mut slices = Vec::new();
        self.0.end(&mut slices);
        match mode {
            // There is no reply left in which a name could go on that broke off.
            Mode::Streamed if !slices.is_empty() => Err(Refusal::BrokenBody.into()),
            _ => {
                parts(Direction::Response, slices, false, replies);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        fixtures::{body, chat, in_force, message, response, rules_that_tell, trailers},
        processor::{How, Moment, Processor, Replies},
        protocol::{Action, BodySendMode, Event, HttpBody, HttpTrailers, NewBody, ProcessingResponse, Reply},
    };
    use bytes::Bytes;
    use prost::Message as _;

    const MOMENT: Moment = Moment { now: jiff::Timestamp::UNIX_EPOCH, random: 0 };
    const JSON: (&str, &str) = ("content-type", "application/json");
    const EVENTS: (&str, &str) = ("content-type", "text/event-stream");

    fn answered(mode: BodySendMode, restore_model: bool, headers: &[(&str, &str)]) -> Processor {
        let how = How { restore_model, ..How::default() };
        let mut processor = Processor::new(rules_that_tell(&in_force(), how));
        let mut first = chat(BodySendMode::FullDuplexStreamed, &[]);
        first.protocol_config.as_mut().unwrap().response_body_mode = mode.into();
        let mut replies = Replies::new();
        for message in [first, body(br#"{"model":"alias"}"#, false), trailers(), response("200", headers)] {
            assert!(processor.take(message, MOMENT, &mut replies));
        }
        processor
    }

    fn piece(bytes: &[u8], end_of_stream: bool) -> Event {
        Event::ResponseBody(HttpBody { body: Bytes::copy_from_slice(bytes), end_of_stream })
    }

    /// What is said to this, as Envoy reads it.
    fn said(processor: &mut Processor, event: Event) -> Vec<Action> {
        let mut replies = Replies::new();
        processor.take(message(event), MOMENT, &mut replies);
        let read = |reply: Reply| ProcessingResponse::decode(&reply.to_wire()[..]).unwrap().action.unwrap();
        replies.into_iter().map(read).collect()
    }

    /// The body that goes on by a reply to `sent`, and whether it is its end.
    fn passed(action: &Action, sent: &[u8]) -> (String, bool) {
        let Action::ResponseBody(reply) = action else { panic!("{action:?}") };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match reply.changes.as_ref().and_then(|changes| changes.body.as_ref()?.body.as_ref()) {
            Some(NewBody::Streamed(part)) => (text(&part.body), part.end_of_stream),
            Some(NewBody::Replaced(body)) => (text(body), false),
            None => (text(sent), false),
        }
    }

    #[test]
    fn a_stream_goes_on_as_it_comes_with_the_clients_name() {
        let mut processor = answered(BodySendMode::FullDuplexStreamed, true, &[EVENTS]);
        for (sent, end, expected) in [
            ("data: {\"model\":\"alias-v2\"}\n\n", false, "data: {\"model\":\"alias\"}\n\n"),
            ("data: {\"model\" : \"alias", false, "data: {\"model\" : "),
            ("-v2\"}\n\n", false, "\"alias\"}\n\n"),
            ("data: [DONE]\n\n", true, "data: [DONE]\n\n"),
        ] {
            let actions = said(&mut processor, piece(sent.as_bytes(), end));
            assert_eq!(actions.len(), 1, "{actions:?}");
            assert_eq!(passed(&actions[0], sent.as_bytes()), (expected.to_owned(), end));
        }
    }

    #[test]
    fn streamed_pieces_have_one_reply_each() {
        let mut processor = answered(BodySendMode::Streamed, true, &[JSON]);
        for (sent, end, expected) in [
            ("{\"model\":\"ali", false, "{\"model\":"),
            ("as-v2", false, ""),
            ("\"}", false, "\"alias\"}"),
            ("", true, ""),
        ] {
            let actions = said(&mut processor, piece(sent.as_bytes(), end));
            assert_eq!(actions.len(), 1, "{actions:?}");
            assert_eq!(passed(&actions[0], sent.as_bytes()).0, expected);
        }
    }

    #[test]
    fn a_buffered_answer_has_its_new_length() {
        let mut processor = answered(BodySendMode::Buffered, true, &[JSON]);
        let sent = br#"{"model":"alias-v2"}"#;
        let actions = said(&mut processor, piece(sent, true));
        assert_eq!(passed(&actions[0], sent).0, r#"{"model":"alias"}"#);
        let Action::ResponseBody(reply) = &actions[0] else { panic!("{actions:?}") };
        let headers = reply.changes.as_ref().unwrap().headers.as_ref().unwrap();
        let line = headers.set[0].header.as_ref().unwrap();
        assert_eq!((&line.key[..], line.value()), (&b"content-length"[..], &b"17"[..]));
    }

    #[test]
    fn what_was_held_goes_on_before_trailers() {
        let mut processor = answered(BodySendMode::FullDuplexStreamed, true, &[JSON]);
        said(&mut processor, piece(b"{\"model\":\"ali", false));
        let actions = said(&mut processor, Event::ResponseTrailers(HttpTrailers {}));
        assert_eq!(passed(&actions[0], b"").0, "\"ali");
        assert!(matches!(actions[1], Action::ResponseTrailers(_)));
        let mut processor = answered(BodySendMode::Streamed, true, &[JSON]);
        said(&mut processor, piece(b"{\"model\":\"ali", false));
        let actions = said(&mut processor, Event::ResponseTrailers(HttpTrailers {}));
        assert!(matches!(actions[..], [Action::Immediate(_)]), "{actions:?}");
    }

    #[test]
    fn everything_else_passes_as_it_is() {
        let sent = br#"{"model":"alias-v2"}"#;
        for (restore, headers) in [
            (false, vec![JSON]),
            (true, vec![("content-type", "text/plain")]),
            (true, vec![JSON, ("content-encoding", "br")]),
            (true, vec![]),
        ] {
            for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Streamed, BodySendMode::Buffered] {
                let mut processor = answered(mode, restore, &headers);
                let actions = said(&mut processor, piece(sent, true));
                assert_eq!(passed(&actions[0], sent).0.as_bytes(), sent, "{mode:?} {headers:?}");
            }
        }
    }
}
