//! A message with a piece of a body, read before it is there as a whole.
//!
//! Envoy, as everybody who writes what protoc makes, writes fields in the order of their numbers. So the body comes
//! first, then whether it has ended, then what stands around it. Whatever is written in another way is read as a whole.

use super::{Direction, HealthCheckRequest, HttpBody, ProcessingEvent, ProcessingRequest};
use crate::grpc::{GrpcStatus, PartialFrame, StreamableMessage};
use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

/// The numbers of the fields from a message down to the bytes.
const REQUEST_BODY_FIELD: u32 = 4;
const RESPONSE_BODY_FIELD: u32 = 5;
const BYTES_FIELD: u32 = 1;

impl StreamableMessage for HealthCheckRequest {}

impl StreamableMessage for ProcessingRequest {
    fn partial_frame(first: &[u8]) -> Option<PartialFrame> {
        let mut rest = first;
        let (field, outer) = read_field(&mut rest)?;
        let direction = match field {
            REQUEST_BODY_FIELD => Direction::Request,
            RESPONSE_BODY_FIELD => Direction::Response,
            _ => return None,
        };
        let around = rest.remaining();
        let (BYTES_FIELD, body) = self::read_field(&mut rest)? else { return None };
        let key = around - rest.remaining();
        let behind = outer.checked_sub(key)?.checked_sub(body)?;
        Some(PartialFrame {
            direction,
            prefix_length: first.len() - rest.len(),
            body_length: body,
            suffix_length: behind,
        })
    }

    fn from_chunk(opening: &PartialFrame, body: Bytes, behind: Option<&[u8]>) -> Result<Self, GrpcStatus> {
        let (rest, around) = behind.map_or((&[][..], &[][..]), |behind| behind.split_at(opening.suffix_length));
        let rest = HttpBody::decode(rest).map_err(GrpcStatus::malformed)?;
        let around = Self::decode(around).map_err(GrpcStatus::malformed)?;
        if !rest.body.is_empty() || around.event.is_some() {
            return Err(GrpcStatus::malformed("a body behind the body"));
        }
        let body = HttpBody { body, end_of_stream: rest.end_of_stream };
        let event = match opening.direction {
            Direction::Request => ProcessingEvent::RequestBody(body),
            Direction::Response => ProcessingEvent::ResponseBody(body),
        };
        Ok(Self { event: Some(event), ..around })
    }
}

/// The number and the length of a field of bytes that begins here.
fn read_field(rest: &mut &[u8]) -> Option<(u32, usize)> {
    let (field, WireType::LengthDelimited) = decode_key(rest).ok()? else { return None };
    Some((field, usize::try_from(decode_varint(rest).ok()?).ok()?))
}
