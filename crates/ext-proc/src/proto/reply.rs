//! Replies, as the stream holds them until they are written. Those of the hot path are not built as messages first.

use super::{
    BodyMutation, CommonResponse, HeaderMutation, HeadersOrBodyResponse, HttpStatus, ImmediateResponse, Mutation,
    ProcessingAction, ProcessingResponse, TrailersResponse,
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
pub(crate) enum ProcessorReply {
    /// Already written.
    Encoded(Bytes),
    /// A message.
    Message(ProcessingResponse),
    /// A piece of a body that is sent on.
    BodyChunk(BodyChunk),
}

/// What changes of a request's headers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RequestHeaderMutation {
    pub(crate) mutation: HeaderMutation,
    /// A header by which routes are chosen is among them.
    pub(crate) clear_route_cache: bool,
}

/// The replies that are always the same.
static REQUEST_HEADERS: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::RequestHeaders(HeadersOrBodyResponse::default())));
static REQUEST_BODY: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::RequestBody(HeadersOrBodyResponse::default())));
static REQUEST_TRAILERS: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::RequestTrailers(TrailersResponse {})));
static RESPONSE_HEADERS: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::ResponseHeaders(HeadersOrBodyResponse::default())));
static RESPONSE_BODY: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::ResponseBody(HeadersOrBodyResponse::default())));
static RESPONSE_TRAILERS: LazyLock<Bytes> =
    LazyLock::new(|| encode_action(ProcessingAction::ResponseTrailers(TrailersResponse {})));

fn encode_action(action: ProcessingAction) -> Bytes {
    ProcessingResponse { action: Some(action) }.encode_to_vec().into()
}

fn headers_response(headers: HeaderMutation) -> HeadersOrBodyResponse {
    HeadersOrBodyResponse {
        response: Some(CommonResponse { header_mutation: Some(headers), ..CommonResponse::default() }),
    }
}

impl ProcessorReply {
    /// Its length as a message.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Message(message) => message.encoded_len(),
            Self::BodyChunk(part) => part.encoded_len(),
        }
    }

    /// As a message.
    #[cfg(test)]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Encoded(bytes) => bytes.to_vec(),
            Self::Message(message) => message.encode_to_vec(),
            Self::BodyChunk(part) => {
                let mut wire = Vec::new();
                part.write_prefix(&mut wire);
                part.slices.iter().for_each(|slice| wire.extend_from_slice(slice));
                BodyChunk::write_suffix(part.end_of_stream, &mut wire);
                wire
            }
        }
    }

    fn from_action(action: ProcessingAction) -> Self {
        Self::Message(ProcessingResponse { action: Some(action) })
    }

    /// Passes the request's headers on, changed or not.
    pub(crate) fn request_headers(change: Option<RequestHeaderMutation>) -> Self {
        match change {
            None => Self::Encoded(REQUEST_HEADERS.clone()),
            Some(RequestHeaderMutation { mutation: headers, clear_route_cache }) => {
                let changes = CommonResponse { header_mutation: Some(headers), body_mutation: None, clear_route_cache };
                Self::from_action(ProcessingAction::RequestHeaders(HeadersOrBodyResponse { response: Some(changes) }))
            }
        }
    }

    /// Passes what was sent of the request's body on, changed or not.
    pub(crate) fn request_body(body: Option<Bytes>, change: Option<RequestHeaderMutation>) -> Self {
        if body.is_none() && change.is_none() {
            return Self::Encoded(REQUEST_BODY.clone());
        }
        let body = body.map(|body| BodyMutation { mutation: Some(Mutation::Body(body)) });
        let clear_route_cache = change.as_ref().is_some_and(|change| change.clear_route_cache);
        let headers = change.map(|change| change.mutation);
        Self::from_action(ProcessingAction::RequestBody(HeadersOrBodyResponse {
            response: Some(CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache }),
        }))
    }

    /// Passes the request's trailers on.
    pub(crate) fn request_trailers() -> Self {
        Self::Encoded(REQUEST_TRAILERS.clone())
    }

    /// Passes the response's headers on, changed or not.
    pub(crate) fn response_headers(changes: Option<HeaderMutation>) -> Self {
        match changes {
            None => Self::Encoded(RESPONSE_HEADERS.clone()),
            Some(changes) => Self::from_action(ProcessingAction::ResponseHeaders(headers_response(changes))),
        }
    }

    /// Passes what was sent of the response's body on.
    pub(crate) fn response_body() -> Self {
        Self::Encoded(RESPONSE_BODY.clone())
    }

    /// Passes this on instead of what was sent of the response's body.
    pub(crate) fn response_body_replaced(body: Bytes, headers: Option<HeaderMutation>) -> Self {
        let body = Some(BodyMutation { mutation: Some(Mutation::Body(body)) });
        let changes = CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache: false };
        Self::from_action(ProcessingAction::ResponseBody(HeadersOrBodyResponse { response: Some(changes) }))
    }

    /// Passes the response's trailers on.
    pub(crate) fn response_trailers() -> Self {
        Self::Encoded(RESPONSE_TRAILERS.clone())
    }

    /// Answers the client with an error. `details` is one word for access logs.
    pub(crate) fn immediate(status: StatusCode, body: Bytes, details: &'static str) -> Self {
        let headers = HeaderMutation::overwrite([(CONTENT_TYPE, Bytes::from_static(ERROR_TYPE.as_bytes()))]);
        Self::from_action(ProcessingAction::ImmediateResponse(ImmediateResponse {
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
pub(crate) struct BodyChunk {
    pub(crate) direction: Direction,
    pub(crate) slices: Vec<Bytes>,
    pub(crate) end_of_stream: bool,
}

/// The numbers of the fields from there down to the bytes.
const COMMON_RESPONSE_FIELD: u32 = 1;
const BODY_MUTATION_FIELD: u32 = 3;
const STREAMED_FIELD: u32 = 3;
const BYTES_FIELD: u32 = 1;
const END_OF_STREAM_FIELD: u32 = 2;

/// The lengths of the fields from a response down to the bytes of a piece, which lie in each other.
struct FieldLengths {
    bytes: usize,
    streamed: usize,
    body_mutation: usize,
    common_response: usize,
    response: usize,
}

/// The length of a field that has so many bytes in it. All keys have one byte.
fn field_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

impl BodyChunk {
    /// How many bytes of a body are in it.
    pub(crate) fn body_length(&self) -> usize {
        self.slices.iter().map(Bytes::len).sum()
    }

    fn field_lengths(&self) -> FieldLengths {
        let bytes = self.body_length();
        let end = if self.end_of_stream { 2 } else { 0 };
        let streamed = end + if bytes > 0 { field_length(bytes) } else { 0 };
        let body = field_length(streamed);
        let changes = field_length(body);
        FieldLengths { bytes, streamed, body_mutation: body, common_response: changes, response: field_length(changes) }
    }

    /// The length of the [`ProcessingResponse`] that it stands for.
    pub(crate) fn encoded_len(&self) -> usize {
        field_length(self.field_lengths().response)
    }

    /// What that message has before the slices. They follow, one after the other, and then [`Self::write_end`].
    pub(crate) fn write_prefix(&self, buffer: &mut impl BufMut) {
        let FieldLengths { bytes, streamed, body_mutation: body, common_response: changes, response: reply } =
            self.field_lengths();
        for (field, length) in [
            (self.direction.field(), reply),
            (COMMON_RESPONSE_FIELD, changes),
            (BODY_MUTATION_FIELD, body),
            (STREAMED_FIELD, streamed),
        ] {
            encode_key(field, WireType::LengthDelimited, buffer);
            encode_varint(length as u64, buffer);
        }
        if bytes > 0 {
            encode_key(BYTES_FIELD, WireType::LengthDelimited, buffer);
            encode_varint(bytes as u64, buffer);
        }
    }

    /// What that message has behind the slices.
    pub(crate) fn write_suffix(end_of_stream: bool, buffer: &mut impl BufMut) {
        if end_of_stream {
            encode_key(END_OF_STREAM_FIELD, WireType::Varint, buffer);
            encode_varint(1, buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::StreamedBodyResponse, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_piece_is_written_as_the_message_it_stands_for(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            end_of_stream in any::<bool>(),
            of_request in any::<bool>(),
        ) {
            let slices: Vec<Bytes> = slices.into_iter().map(Bytes::from).collect();
            let streamed = StreamedBodyResponse { body: slices.concat().into(), end_of_stream };
            let body = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) });
            let changes = CommonResponse { body_mutation: body, ..CommonResponse::default() };
            let reply = HeadersOrBodyResponse { response: Some(changes) };
            let (direction, action) = if of_request {
                (Direction::Request, ProcessingAction::RequestBody(reply))
            } else {
                (Direction::Response, ProcessingAction::ResponseBody(reply))
            };
            let part = BodyChunk { direction, slices, end_of_stream };
            prop_assert_eq!(part.encoded_len(), encode_action(action.clone()).len());
            prop_assert_eq!(ProcessorReply::BodyChunk(part).to_bytes(), encode_action(action));
        }
    }
}
