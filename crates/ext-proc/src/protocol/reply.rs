//! Replies, as the stream holds them until they are written. Those of the hot path are not built as messages first.

use super::{
    Action, BodyMutation, Changes, CommonReply, HeaderMutation, HttpStatus, ImmediateReply, NewBody,
    ProcessingResponse, TrailersReply,
};
use bytes::{BufMut, Bytes};
use http::{StatusCode, header::CONTENT_TYPE};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use rollora_router::refusal::CONTENT_TYPE as ERROR_TYPE;
use std::sync::LazyLock;

/// One reply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// Already written.
    Encoded(Bytes),
    /// A message.
    Message(ProcessingResponse),
    /// A piece of a body that is sent on.
    Body(BodyPart),
}

/// What changes of a request's headers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HeaderChange {
    pub(crate) headers: HeaderMutation,
    /// A header by which routes are chosen is among them.
    pub(crate) clear_route_cache: bool,
}

/// The replies that are always the same.
static REQUEST_HEADERS: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::RequestHeaders(CommonReply::default())));
static REQUEST_BODY: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::RequestBody(CommonReply::default())));
static REQUEST_TRAILERS: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::RequestTrailers(TrailersReply {})));
static RESPONSE_HEADERS: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::ResponseHeaders(CommonReply::default())));
static RESPONSE_BODY: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::ResponseBody(CommonReply::default())));
static RESPONSE_TRAILERS: LazyLock<Bytes> = LazyLock::new(|| encoded(Action::ResponseTrailers(TrailersReply {})));

fn encoded(action: Action) -> Bytes {
    ProcessingResponse { action: Some(action) }.encode_to_vec().into()
}

fn with_headers(headers: HeaderMutation) -> CommonReply {
    CommonReply { changes: Some(Changes { headers: Some(headers), ..Changes::default() }) }
}

impl Reply {
    /// Its length as a message.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Message(message) => message.encoded_len(),
            Self::Body(part) => part.encoded_len(),
        }
    }

    /// As a message.
    #[cfg(test)]
    pub(crate) fn to_wire(&self) -> Vec<u8> {
        match self {
            Self::Encoded(bytes) => bytes.to_vec(),
            Self::Message(message) => message.encode_to_vec(),
            Self::Body(part) => {
                let mut wire = Vec::new();
                part.write_head(&mut wire);
                part.slices.iter().for_each(|slice| wire.extend_from_slice(slice));
                BodyPart::write_end(part.end_of_stream, &mut wire);
                wire
            }
        }
    }

    fn action(action: Action) -> Self {
        Self::Message(ProcessingResponse { action: Some(action) })
    }

    /// Passes the request's headers on, changed or not.
    pub(crate) fn request_headers(change: Option<HeaderChange>) -> Self {
        match change {
            None => Self::Encoded(REQUEST_HEADERS.clone()),
            Some(HeaderChange { headers, clear_route_cache }) => {
                let changes = Changes { headers: Some(headers), body: None, clear_route_cache };
                Self::action(Action::RequestHeaders(CommonReply { changes: Some(changes) }))
            }
        }
    }

    /// Passes what was sent of the request's body on, changed or not.
    pub(crate) fn request_body(body: Option<Bytes>, change: Option<HeaderChange>) -> Self {
        if body.is_none() && change.is_none() {
            return Self::Encoded(REQUEST_BODY.clone());
        }
        let body = body.map(|body| BodyMutation { body: Some(NewBody::Replaced(body)) });
        let clear_route_cache = change.as_ref().is_some_and(|change| change.clear_route_cache);
        let headers = change.map(|change| change.headers);
        Self::action(Action::RequestBody(CommonReply { changes: Some(Changes { headers, body, clear_route_cache }) }))
    }

    /// Passes the request's trailers on.
    pub(crate) fn request_trailers() -> Self {
        Self::Encoded(REQUEST_TRAILERS.clone())
    }

    /// Passes the response's headers on, changed or not.
    pub(crate) fn response_headers(changes: Option<HeaderMutation>) -> Self {
        match changes {
            None => Self::Encoded(RESPONSE_HEADERS.clone()),
            Some(changes) => Self::action(Action::ResponseHeaders(with_headers(changes))),
        }
    }

    /// Passes what was sent of the response's body on.
    pub(crate) fn response_body() -> Self {
        Self::Encoded(RESPONSE_BODY.clone())
    }

    /// Passes this on instead of what was sent of the response's body.
    pub(crate) fn response_body_changed(body: Bytes, headers: Option<HeaderMutation>) -> Self {
        let body = Some(BodyMutation { body: Some(NewBody::Replaced(body)) });
        let changes = Changes { headers, body, clear_route_cache: false };
        Self::action(Action::ResponseBody(CommonReply { changes: Some(changes) }))
    }

    /// Passes the response's trailers on.
    pub(crate) fn response_trailers() -> Self {
        Self::Encoded(RESPONSE_TRAILERS.clone())
    }

    /// Answers the client with an error. `details` is one word for access logs.
    pub(crate) fn immediate(status: StatusCode, body: Bytes, details: &'static str) -> Self {
        let headers = HeaderMutation::setting([(CONTENT_TYPE, Bytes::from_static(ERROR_TYPE.as_bytes()))]);
        Self::action(Action::Immediate(ImmediateReply {
            status: Some(HttpStatus { code: status.as_u16().into() }),
            headers: Some(headers),
            body,
            details: details.to_owned(),
        }))
    }
}

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The request's.
    Request,
    /// The response's.
    Response,
}

impl Direction {
    /// The number of its field in a response.
    fn field(self) -> u32 {
        match self {
            Self::Request => 3,
            Self::Response => 4,
        }
    }
}

/// A piece of a body, in slices of what was sent and what replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyPart {
    pub(crate) direction: Direction,
    pub(crate) slices: Vec<Bytes>,
    pub(crate) end_of_stream: bool,
}

/// The numbers of the fields from there down to the bytes.
const CHANGES_FIELD: u32 = 1;
const BODY_FIELD: u32 = 3;
const STREAMED_FIELD: u32 = 3;
const BYTES_FIELD: u32 = 1;
const END_FIELD: u32 = 2;

/// The lengths of the fields from a response down to the bytes of a piece, which lie in each other.
struct Lengths {
    bytes: usize,
    streamed: usize,
    body: usize,
    changes: usize,
    reply: usize,
}

/// The length of a field that has so many bytes in it. All keys have one byte.
fn within(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

impl BodyPart {
    /// How many bytes of a body are in it.
    pub(crate) fn length(&self) -> usize {
        self.slices.iter().map(Bytes::len).sum()
    }

    fn lengths(&self) -> Lengths {
        let bytes = self.length();
        let end = if self.end_of_stream { 2 } else { 0 };
        let streamed = end + if bytes > 0 { within(bytes) } else { 0 };
        let body = within(streamed);
        let changes = within(body);
        Lengths { bytes, streamed, body, changes, reply: within(changes) }
    }

    /// The length of the [`ProcessingResponse`] that it stands for.
    pub(crate) fn encoded_len(&self) -> usize {
        within(self.lengths().reply)
    }

    /// What that message has before the slices. They follow, one after the other, and then [`Self::write_end`].
    pub(crate) fn write_head(&self, buffer: &mut impl BufMut) {
        let Lengths { bytes, streamed, body, changes, reply } = self.lengths();
        for (field, length) in
            [(self.direction.field(), reply), (CHANGES_FIELD, changes), (BODY_FIELD, body), (STREAMED_FIELD, streamed)]
        {
            encode_key(field, WireType::LengthDelimited, buffer);
            encode_varint(length as u64, buffer);
        }
        if bytes > 0 {
            encode_key(BYTES_FIELD, WireType::LengthDelimited, buffer);
            encode_varint(bytes as u64, buffer);
        }
    }

    /// What that message has behind the slices.
    pub(crate) fn write_end(end_of_stream: bool, buffer: &mut impl BufMut) {
        if end_of_stream {
            encode_key(END_FIELD, WireType::Varint, buffer);
            encode_varint(1, buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::StreamedBody, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_piece_is_written_as_the_message_it_stands_for(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            end_of_stream in any::<bool>(),
            of_request in any::<bool>(),
        ) {
            let slices: Vec<Bytes> = slices.into_iter().map(Bytes::from).collect();
            let streamed = StreamedBody { body: slices.concat().into(), end_of_stream };
            let body = Some(BodyMutation { body: Some(NewBody::Streamed(streamed)) });
            let changes = Changes { body, ..Changes::default() };
            let reply = CommonReply { changes: Some(changes) };
            let (direction, action) = if of_request {
                (Direction::Request, Action::RequestBody(reply))
            } else {
                (Direction::Response, Action::ResponseBody(reply))
            };
            let part = BodyPart { direction, slices, end_of_stream };
            prop_assert_eq!(part.encoded_len(), encoded(action.clone()).len());
            prop_assert_eq!(Reply::Body(part).to_wire(), encoded(action));
        }
    }
}
