//! Decoding of messages with a body before they have arrived completely.
//!
//! Envoy, like everything that protoc generates, writes fields in the order of their numbers: first the body, then
//! whether it has ended, then the enclosing fields. A message in any other order is decoded as a whole.

use super::{Direction, HealthCheckRequest, HttpBody, ProcessingEvent, ProcessingRequest};
use crate::grpc::{GrpcStatus, PartialFrame, StreamableMessage};
use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

/// Field numbers from the message to the bytes of the body.
const REQUEST_BODY_FIELD: u32 = 4;
const RESPONSE_BODY_FIELD: u32 = 5;
const BYTES_FIELD: u32 = 1;

impl StreamableMessage for HealthCheckRequest {}

impl StreamableMessage for ProcessingRequest {
    fn partial_frame(prefix: &[u8]) -> Option<PartialFrame> {
        let mut rest = prefix;
        let (field, outer_length) = read_field(&mut rest)?;
        let direction = match field {
            REQUEST_BODY_FIELD => Direction::Request,
            RESPONSE_BODY_FIELD => Direction::Response,
            _ => return None,
        };
        let before = rest.remaining();
        let (BYTES_FIELD, body_length) = read_field(&mut rest)? else { return None };
        let key_length = before - rest.remaining();
        let suffix_length = outer_length.checked_sub(key_length)?.checked_sub(body_length)?;
        Some(PartialFrame { direction, prefix_length: prefix.len() - rest.len(), body_length, suffix_length })
    }

    fn from_chunk(frame: &PartialFrame, body: Bytes, suffix: Option<&[u8]>) -> Result<Self, GrpcStatus> {
        let (inner, outer) = suffix.map_or((&[][..], &[][..]), |suffix| suffix.split_at(frame.suffix_length));
        let inner = HttpBody::decode(inner).map_err(GrpcStatus::malformed)?;
        let outer = Self::decode(outer).map_err(GrpcStatus::malformed)?;
        if !inner.body.is_empty() || outer.event.is_some() {
            return Err(GrpcStatus::malformed("the message has two bodies"));
        }
        let body = HttpBody { body, end_of_stream: inner.end_of_stream };
        let event = match frame.direction {
            Direction::Request => ProcessingEvent::RequestBody(body),
            Direction::Response => ProcessingEvent::ResponseBody(body),
        };
        Ok(Self { event: Some(event), ..outer })
    }
}

/// Reads number and length of a length-delimited field that begins here.
fn read_field(rest: &mut &[u8]) -> Option<(u32, usize)> {
    let (field, WireType::LengthDelimited) = decode_key(rest).ok()? else { return None };
    Some((field, usize::try_from(decode_varint(rest).ok()?).ok()?))
}
