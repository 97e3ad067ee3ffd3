//! Minimal gRPC server over HTTP/2 for streams with long bodies.
//!
//! gRPC libraries buffer each message completely, and one message of Envoy can contain a whole request body up to
//! Envoy's buffer limit: a thousand such requests would be in memory at the same time. Therefore a message that can be
//! processed in parts is decoded as it arrives ([`decoder`]), its bytes are sent without copying ([`send_buffer`]), and
//! a stream receives no more than it can send ([`call`]).
//!
//! The framing is that of "gRPC over HTTP2" (grpc/grpc, doc/PROTOCOL-HTTP2.md). Compression is not supported.

mod call;
mod decoder;
mod send_buffer;
mod status;

pub(crate) use {decoder::MessageDecoder, send_buffer::SendBuffer};

pub(crate) use call::{CallFlow, CallHandler, GrpcCall, ReplyQueue, refuse_call};
pub(crate) use decoder::{PartialFrame, StreamableMessage};
pub(crate) use send_buffer::Slices;
pub(crate) use status::GrpcStatus;

/// Length of the prefix of each message: a compression flag and the message's length.
const PREFIX_LENGTH: usize = 5;
