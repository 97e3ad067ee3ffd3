//! One gRPC call, polled in place: decodes incoming messages, passes them to a handler and sends its replies.
//!
//! Invariants: a call takes in at most one stream window of data until all replies to that data were passed to the
//! connection; replies are passed to the connection only as its flow control allows. So a slow reader on one side stops
//! the sender on the other side, and all calls of a connection together buffer no more than the connection's windows,
//! except for messages that must be buffered whole.

use super::{GrpcStatus, StreamableMessage, decoder::MessageDecoder, send_buffer::SendBuffer, send_buffer::Slices};
use crate::{
    processor::MAX_BODY_CHUNK,
    proto::{Direction, ProcessorReply},
};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Replies that wait to be sent.
pub(crate) type ReplyQueue = VecDeque<ProcessorReply>;

/// How a call continues after a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFlow {
    /// Process the next message.
    Continue,
    /// End the call with this status, after the queued replies.
    End(GrpcStatus),
}

/// Handler of the messages of one call.
pub(crate) trait CallHandler {
    /// Type of the incoming messages.
    type Message: StreamableMessage;

    /// Handles a message, or a part of one, and appends replies to `replies`.
    fn handle_message(&mut self, message: Self::Message, replies: &mut ReplyQueue) -> CallFlow;

    /// Returns whether long messages with a body of this direction may be passed to the handler in parts.
    fn accepts_chunks(&self, _direction: Direction) -> bool {
        false
    }

    /// Polls for a permit to buffer a long message of `bytes` bytes whole.
    fn poll_permit(&mut self, _bytes: usize, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Polls whether the next message may be handled; can append replies or end the call.
    fn poll_ready(&mut self, _context: &mut Context<'_>, _replies: &mut ReplyQueue) -> Poll<CallFlow> {
        Poll::Ready(CallFlow::Continue)
    }
}

/// One call. Completes when everything was sent or the client has disconnected.
#[derive(Debug)]
pub(crate) struct GrpcCall<W> {
    incoming: RecvStream,
    /// Number of received bytes that were not released to flow control yet.
    unreleased: usize,
    decoder: MessageDecoder,
    handler: W,
    replies: ReplyQueue,
    send_buffer: SendBuffer,
    response: GrpcResponse,
    end: Option<GrpcStatus>,
}

/// The response. Its headers are sent together with the first reply.
#[derive(Debug)]
enum GrpcResponse {
    NotStarted(SendResponse<Slices>),
    Started(SendStream<Slices>),
}

/// The client has closed the stream.
#[derive(Debug)]
struct Disconnected;

impl From<h2::Error> for Disconnected {
    /// The error is dropped: how a stream ends carries no information, see [`crate::processor`].
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl<W: CallHandler> GrpcCall<W> {
    /// Creates a call whose messages have at most `max_length` bytes.
    pub(crate) fn new(incoming: RecvStream, respond: SendResponse<Slices>, max_length: usize, handler: W) -> Self {
        Self {
            incoming,
            unreleased: 0,
            decoder: MessageDecoder::new(max_length),
            handler,
            replies: ReplyQueue::new(),
            send_buffer: SendBuffer::default(),
            response: GrpcResponse::NotStarted(respond),
            end: None,
        }
    }

    fn poll_call(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        let mut is_waiting = false;
        loop {
            ready!(self.poll_send(context))?;
            if let Some(status) = &self.end {
                return Poll::Ready(self.response.end(status));
            }
            self.release_capacity()?;
            if is_waiting {
                let stream = self.response.start()?;
                return stream.poll_reset(context).map(|_| Err(Disconnected));
            }
            is_waiting = self.poll_receive(context)?.is_pending();
            self.replies.drain(..).for_each(|reply| self.send_buffer.push(reply));
        }
    }

    /// Handles the available messages until the call ends, a full body chunk is queued, or no more data is available.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Disconnected> {
        let mut queued = 0;
        // Stop receiving while a full chunk waits to be sent.
        while self.end.is_none() && queued < MAX_BODY_CHUNK {
            let Poll::Ready(next) = self.handler.poll_ready(context, &mut self.replies) else {
                return Ok(Poll::Pending);
            };
            let next = match next {
                CallFlow::Continue => match self.decoder.next(|direction| self.handler.accepts_chunks(direction)) {
                    Ok(Some(message)) => self.handler.handle_message(message, &mut self.replies),
                    Err(status) => CallFlow::End(status),
                    Ok(None) if self.poll_permit(context).is_pending() => return Ok(Poll::Pending),
                    Ok(None) => match self.incoming.poll_data(context) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(None) => CallFlow::End(GrpcStatus::OK),
                        Poll::Ready(Some(chunk)) => {
                            let chunk = chunk?;
                            self.unreleased += chunk.len();
                            self.decoder.push(chunk);
                            CallFlow::Continue
                        }
                    },
                },
                end @ CallFlow::End(_) => end,
            };
            if let CallFlow::End(status) = next {
                self.end = Some(status);
            }
            queued = self.replies.iter().map(ProcessorReply::len).sum();
        }
        Ok(Poll::Ready(()))
    }

    fn poll_permit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.decoder.collecting_length() {
            Some(bytes) => self.handler.poll_permit(bytes, context),
            None => Poll::Ready(()),
        }
    }

    /// Passes all queued bytes to the connection, as far as its flow control allows.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        while self.send_buffer.len() > 0 {
            let stream = self.response.start()?;
            stream.reserve_capacity(self.send_buffer.len());
            let capacity = match stream.capacity() {
                0 => match ready!(stream.poll_capacity(context)) {
                    Some(capacity) => capacity?,
                    None => return Poll::Ready(Err(Disconnected)),
                },
                capacity => capacity,
            };
            stream.send_data(self.send_buffer.take(capacity), false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Releases the received bytes to flow control, so that the peer may send as much again.
    fn release_capacity(&mut self) -> Result<(), Disconnected> {
        Ok(self.incoming.flow_control().release_capacity(std::mem::take(&mut self.unreleased))?)
    }
}

impl GrpcResponse {
    fn start(&mut self) -> Result<&mut SendStream<Slices>, Disconnected> {
        if let Self::NotStarted(respond) = self {
            *self = Self::Started(respond.send_response(response_head(), false)?);
        }
        match self {
            Self::Started(stream) => Ok(stream),
            Self::NotStarted(_) => Err(Disconnected),
        }
    }

    fn end(&mut self, status: &GrpcStatus) -> Result<(), Disconnected> {
        match self {
            Self::NotStarted(respond) => send_trailers_only(respond, status),
            Self::Started(stream) => {
                let mut trailers = HeaderMap::with_capacity(2);
                status.write_to(&mut trailers);
                Ok(stream.send_trailers(trailers)?)
            }
        }
    }
}

fn response_head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

fn send_trailers_only(respond: &mut SendResponse<Slices>, status: &GrpcStatus) -> Result<(), Disconnected> {
    let mut head = response_head();
    status.write_to(head.headers_mut());
    respond.send_response(head, true)?;
    Ok(())
}

/// Ends a call with `status` and no messages.
pub(crate) fn refuse_call(mut respond: SendResponse<Slices>, status: &GrpcStatus) {
    // Fails only if the client has disconnected.
    drop(send_trailers_only(&mut respond, status));
}

impl<W: CallHandler + Unpin> Future for GrpcCall<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.poll_call(context).map(drop)
    }
}
