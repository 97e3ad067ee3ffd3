//! A message with a piece of a body, read before it is there as a whole.
//!
//! Envoy, as everybody who writes what protoc makes, writes fields in the order of their numbers. So the body comes
//! first, then whether it has ended, then what stands around it. Whatever is written in another way is read as a whole.

use super::{Direction, Event, HealthCheckRequest, HttpBody, ProcessingRequest};
use crate::grpc::{Incoming, Opening, Status};
use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

/// The numbers of the fields from a message down to the bytes.
const REQUEST_BODY: u32 = 4;
const RESPONSE_BODY: u32 = 5;
const BYTES: u32 = 1;

impl Incoming for HealthCheckRequest {}

impl Incoming for ProcessingRequest {
    fn opening(first: &[u8]) -> Option<Opening> {
        let mut rest = first;
        let (field, outer) = field(&mut rest)?;
        let direction = match field {
            REQUEST_BODY => Direction::Request,
            RESPONSE_BODY => Direction::Response,
            _ => return None,
        };
        let around = rest.remaining();
        let (BYTES, body) = self::field(&mut rest)? else { return None };
        let key = around - rest.remaining();
        let behind = outer.checked_sub(key)?.checked_sub(body)?;
        Some(Opening { direction, before: first.len() - rest.len(), body, behind })
    }

    fn piece(opening: &Opening, body: Bytes, behind: Option<&[u8]>) -> Result<Self, Status> {
        let (rest, around) = behind.map_or((&[][..], &[][..]), |behind| behind.split_at(opening.behind));
        let rest = HttpBody::decode(rest).map_err(Status::malformed)?;
        let around = Self::decode(around).map_err(Status::malformed)?;
        if !rest.body.is_empty() || around.event.is_some() {
            return Err(Status::malformed("a body behind the body"));
        }
        let body = HttpBody { body, end_of_stream: rest.end_of_stream };
        let event = match opening.direction {
            Direction::Request => Event::RequestBody(body),
            Direction::Response => Event::ResponseBody(body),
        };
        Ok(Self { event: Some(event), ..around })
    }
}

/// The number and the length of a field of bytes that begins here.
fn field(rest: &mut &[u8]) -> Option<(u32, usize)> {
    let (field, WireType::LengthDelimited) = decode_key(rest).ok()? else { return None };
    Some((field, usize::try_from(decode_varint(rest).ok()?).ok()?))
}
