//! gRPC as a server over HTTP/2, for streams that pass long bodies on.
//!
//! Libraries put a message together before anybody sees it. Envoy makes one message of whatever it has of a body, up
//! to its buffer's limit, so a thousand requests would be here as a whole, all at once. Here a message that says how it
//! goes on is read as it comes ([`messages`]), what goes on is written without copying it ([`outbox`]), and a stream
//! takes in no more than it could send ([`call`]).
//!
//! The framing is that of "gRPC over HTTP2" (grpc/grpc, doc/PROTOCOL-HTTP2.md). Compression is not spoken.

mod call;
mod decoder;
mod send_buffer;
mod status;

pub(crate) use {decoder::MessageDecoder, send_buffer::SendBuffer};

pub(crate) use call::{CallFlow, CallHandler, GrpcCall, ReplyQueue, refuse_call};
pub(crate) use decoder::{PartialFrame, StreamableMessage};
pub(crate) use send_buffer::Slices;
pub(crate) use status::GrpcStatus;

/// What stands before each message: whether it is compressed, and its length.
const PREFIX_LENGTH: usize = 5;
