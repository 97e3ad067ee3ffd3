//! gRPC as a server over HTTP/2, for streams that pass long bodies on.
//!
//! Libraries put a message together before anybody sees it. Envoy makes one message of whatever it has of a body, up
//! to its buffer's limit, so a thousand requests would be here as a whole, all at once. Here a message that says how it
//! goes on is read as it comes ([`messages`]), what goes on is written without copying it ([`outbox`]), and a stream
//! takes in no more than it could send ([`call`]).
//!
//! The framing is that of "gRPC over HTTP2" (grpc/grpc, doc/PROTOCOL-HTTP2.md). Compression is not spoken.

mod call;
mod messages;
mod outbox;
mod status;

pub(crate) use {messages::Messages, outbox::Outbox};

pub(crate) use call::{Call, Next, Replies, Work, refuse};
pub(crate) use messages::{Incoming, Opening};
pub(crate) use outbox::Slices;
pub(crate) use status::Status;

/// What stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
