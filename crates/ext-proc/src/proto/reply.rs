//! Replies as they are queued until they are sent. Frequent replies are encoded without building a message first.

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

/// Reply to one event of Envoy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ProcessorReply {
    /// A [`ProcessingResponse`] that is already encoded.
    Encoded(Bytes),
    Message(ProcessingResponse),
    BodyChunk(BodyChunk),
}

/// Changes of a request's headers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RequestHeaderMutation {
    pub(crate) mutation: HeaderMutation,
    /// Whether Envoy must select the route again, because one of these headers is used for routing.
    pub(crate) clear_route_cache: bool,
}

/// Constant replies, encoded once.
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
    /// Returns the length of the encoded message.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Message(message) => message.encoded_len(),
            Self::BodyChunk(chunk) => chunk.encoded_len(),
        }
    }

    #[cfg(test)]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Encoded(bytes) => bytes.to_vec(),
            Self::Message(message) => message.encode_to_vec(),
            Self::BodyChunk(chunk) => {
                let mut wire = Vec::new();
                chunk.write_prefix(&mut wire);
                chunk.slices.iter().for_each(|slice| wire.extend_from_slice(slice));
                BodyChunk::write_suffix(chunk.end_of_stream, &mut wire);
                wire
            }
        }
    }

    fn from_action(action: ProcessingAction) -> Self {
        Self::Message(ProcessingResponse { action: Some(action) })
    }

    /// Forwards the request headers, with changes if given.
    pub(crate) fn request_headers(change: Option<RequestHeaderMutation>) -> Self {
        match change {
            None => Self::Encoded(REQUEST_HEADERS.clone()),
            Some(RequestHeaderMutation { mutation: headers, clear_route_cache }) => {
                let response =
                    CommonResponse { header_mutation: Some(headers), body_mutation: None, clear_route_cache };
                Self::from_action(ProcessingAction::RequestHeaders(HeadersOrBodyResponse { response: Some(response) }))
            }
        }
    }

    /// Forwards the body that this replies to, or `body` instead of it, with changes of the headers if given.
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

    /// Forwards the request trailers.
    pub(crate) fn request_trailers() -> Self {
        Self::Encoded(REQUEST_TRAILERS.clone())
    }

    /// Forwards the response headers, with changes if given.
    pub(crate) fn response_headers(mutation: Option<HeaderMutation>) -> Self {
        match mutation {
            None => Self::Encoded(RESPONSE_HEADERS.clone()),
            Some(mutation) => Self::from_action(ProcessingAction::ResponseHeaders(headers_response(mutation))),
        }
    }

    /// Forwards the response body that this replies to.
    pub(crate) fn response_body() -> Self {
        Self::Encoded(RESPONSE_BODY.clone())
    }

    /// Forwards `body` instead of the response body that this replies to, with changes of the headers if given.
    pub(crate) fn response_body_replaced(body: Bytes, headers: Option<HeaderMutation>) -> Self {
        let body = Some(BodyMutation { mutation: Some(Mutation::Body(body)) });
        let response = CommonResponse { header_mutation: headers, body_mutation: body, clear_route_cache: false };
        Self::from_action(ProcessingAction::ResponseBody(HeadersOrBodyResponse { response: Some(response) }))
    }

    /// Forwards the response trailers.
    pub(crate) fn response_trailers() -> Self {
        Self::Encoded(RESPONSE_TRAILERS.clone())
    }

    /// Responds to the client with an error. `details` is a one-word reason for access logs.
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

/// Direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Response,
}

impl Direction {
    /// Field number of the body reply in [`ProcessingResponse`].
    fn field(self) -> u32 {
        match self {
            Self::Request => 3,
            Self::Response => 4,
        }
    }
}

/// A chunk of a body to forward, as slices of the received body and of the replaced name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyChunk {
    pub(crate) direction: Direction,
    pub(crate) slices: Vec<Bytes>,
    pub(crate) end_of_stream: bool,
}

/// Numbers of the nested fields from the body reply to the bytes.
const COMMON_RESPONSE_FIELD: u32 = 1;
const BODY_MUTATION_FIELD: u32 = 3;
const STREAMED_FIELD: u32 = 3;
const BYTES_FIELD: u32 = 1;
const END_OF_STREAM_FIELD: u32 = 2;

/// Lengths of the nested fields from the body reply to the bytes.
struct FieldLengths {
    bytes: usize,
    streamed: usize,
    body_mutation: usize,
    common_response: usize,
    response: usize,
}

/// Returns the encoded length of a field with `length` bytes. All keys have one byte.
fn field_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

impl BodyChunk {
    /// Returns the number of body bytes in the chunk.
    pub(crate) fn body_length(&self) -> usize {
        self.slices.iter().map(Bytes::len).sum()
    }

    fn field_lengths(&self) -> FieldLengths {
        let bytes = self.body_length();
        let end = if self.end_of_stream { 2 } else { 0 };
        let streamed = end + if bytes > 0 { field_length(bytes) } else { 0 };
        let body_mutation = field_length(streamed);
        let common_response = field_length(body_mutation);
        FieldLengths { bytes, streamed, body_mutation, common_response, response: field_length(common_response) }
    }

    /// Returns the length of the [`ProcessingResponse`] that the chunk stands for.
    pub(crate) fn encoded_len(&self) -> usize {
        field_length(self.field_lengths().response)
    }

    /// Writes the part of that message before the slices. The slices and [`Self::write_suffix`] must follow.
    pub(crate) fn write_prefix(&self, buffer: &mut impl BufMut) {
        let FieldLengths { bytes, streamed, body_mutation, common_response, response } = self.field_lengths();
        for (field, length) in [
            (self.direction.field(), response),
            (COMMON_RESPONSE_FIELD, common_response),
            (BODY_MUTATION_FIELD, body_mutation),
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

    /// Writes the part of that message after the slices.
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
        fn chunk_is_encoded_as_the_message_it_stands_for(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            end_of_stream in any::<bool>(),
            is_request in any::<bool>(),
        ) {
            let slices: Vec<Bytes> = slices.into_iter().map(Bytes::from).collect();
            let streamed = StreamedBodyResponse { body: slices.concat().into(), end_of_stream };
            let body = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) });
            let response = CommonResponse { body_mutation: body, ..CommonResponse::default() };
            let reply = HeadersOrBodyResponse { response: Some(response) };
            let (direction, action) = if is_request {
                (Direction::Request, ProcessingAction::RequestBody(reply))
            } else {
                (Direction::Response, ProcessingAction::ResponseBody(reply))
            };
            let chunk = BodyChunk { direction, slices, end_of_stream };
            prop_assert_eq!(chunk.encoded_len(), encode_action(action.clone()).len());
            prop_assert_eq!(ProcessorReply::BodyChunk(chunk).to_bytes(), encode_action(action));
        }
    }
}
