//! One call, polled in place: what comes is taken in, what is said goes out.
//!
//! Invariant: of what has come, no more is taken than the stream's window, until every reply to it has been given to the
//! connection; and no reply is given to it that the other end has no room for. So whoever reads slowly at the one end
//! stops the sending at the other, and what all calls of a connection hold is no more than the connection's windows,
//! besides messages that have to be put together.

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

/// Replies that are waiting to be written.
pub(crate) type ReplyQueue = VecDeque<ProcessorReply>;

/// How a call goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFlow {
    /// With the next message.
    Continue,
    /// It ends, with this status, after what is in the replies.
    End(GrpcStatus),
}

/// What is done with the messages of a call.
pub(crate) trait CallHandler {
    /// What comes.
    type Message: StreamableMessage;

    /// Takes in a message, or a piece of one, and puts what is to be said into `replies`.
    fn handle_message(&mut self, message: Self::Message, replies: &mut ReplyQueue) -> CallFlow;

    /// Whether long messages with a body of this direction may be given in pieces.
    fn accepts_chunks(&self, _direction: Direction) -> bool {
        false
    }

    /// When there is room for a long message of so many bytes, which has to be put together before it is taken in.
    fn poll_permit(&mut self, _bytes: usize, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// When and how it goes on before the next message is taken in; also here something can be said.
    fn poll_ready(&mut self, _context: &mut Context<'_>, _replies: &mut ReplyQueue) -> Poll<CallFlow> {
        Poll::Ready(CallFlow::Continue)
    }
}

/// A call. Ends when the last has been said, or when nobody listens any more.
#[derive(Debug)]
pub(crate) struct GrpcCall<W> {
    incoming: RecvStream,
    /// What has been taken in, and for which no room has been given back.
    unreleased: usize,
    decoder: MessageDecoder,
    handler: W,
    replies: ReplyQueue,
    send_buffer: SendBuffer,
    response: GrpcResponse,
    end: Option<GrpcStatus>,
}

/// The answer, which begins with what is said first, so that both are sent together.
#[derive(Debug)]
enum GrpcResponse {
    NotStarted(SendResponse<Slices>),
    Started(SendStream<Slices>),
}

/// Nobody listens any more.
#[derive(Debug)]
struct Disconnected;

impl From<h2::Error> for Disconnected {
    /// How streams end says nothing, see [`crate::processor`].
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl<W: CallHandler> GrpcCall<W> {
    /// A call in which messages have at most the length `longest`.
    pub(crate) fn new(incoming: RecvStream, answer: SendResponse<Slices>, longest: usize, handler: W) -> Self {
        Self {
            incoming,
            unreleased: 0,
            decoder: MessageDecoder::new(longest),
            handler,
            replies: ReplyQueue::new(),
            send_buffer: SendBuffer::default(),
            response: GrpcResponse::NotStarted(answer),
            end: None,
        }
    }

    fn poll_call(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        let mut waits = false;
        loop {
            ready!(self.poll_send(context))?;
            if let Some(status) = &self.end {
                return Poll::Ready(self.response.end(status));
            }
            self.release_capacity()?;
            if waits {
                let answer = self.response.start()?;
                return answer.poll_reset(context).map(|_| Err(Disconnected));
            }
            waits = self.poll_receive(context)?.is_pending();
            self.replies.drain(..).for_each(|reply| self.send_buffer.push(reply));
        }
    }

    /// Takes in what is there: until it has an end, or enough to say, or nothing more is there.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Disconnected> {
        let mut said = 0;
        // When a whole part is waiting to be sent nothing more is taken in.
        while self.end.is_none() && said < MAX_BODY_CHUNK {
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
            said = self.replies.iter().map(ProcessorReply::len).sum();
        }
        Ok(Poll::Ready(()))
    }

    fn poll_permit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.decoder.collecting_length() {
            Some(bytes) => self.handler.poll_permit(bytes, context),
            None => Poll::Ready(()),
        }
    }

    /// Gives everything that is to be said to the connection, as the other end has room for it.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        while self.send_buffer.len() > 0 {
            let answer = self.response.start()?;
            answer.reserve_capacity(self.send_buffer.len());
            let room = match answer.capacity() {
                0 => match ready!(answer.poll_capacity(context)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(Disconnected)),
                },
                room => room,
            };
            answer.send_data(self.send_buffer.take(room), false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// What was taken in is done with: the other end may send as much again.
    fn release_capacity(&mut self) -> Result<(), Disconnected> {
        Ok(self.incoming.flow_control().release_capacity(std::mem::take(&mut self.unreleased))?)
    }
}

impl GrpcResponse {
    fn start(&mut self) -> Result<&mut SendStream<Slices>, Disconnected> {
        if let Self::NotStarted(due) = self {
            *self = Self::Started(due.send_response(response_head(), false)?);
        }
        match self {
            Self::Started(begun) => Ok(begun),
            Self::NotStarted(_) => Err(Disconnected),
        }
    }

    fn end(&mut self, status: &GrpcStatus) -> Result<(), Disconnected> {
        match self {
            Self::NotStarted(due) => send_trailers_only(due, status),
            Self::Started(begun) => {
                let mut trailers = HeaderMap::with_capacity(2);
                status.write_to(&mut trailers);
                Ok(begun.send_trailers(trailers)?)
            }
        }
    }
}

fn response_head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

fn send_trailers_only(answer: &mut SendResponse<Slices>, status: &GrpcStatus) -> Result<(), Disconnected> {
    let mut head = response_head();
    status.write_to(head.headers_mut());
    answer.send_response(head, true)?;
    Ok(())
}

/// Ends a call before it begins.
pub(crate) fn refuse_call(mut answer: SendResponse<Slices>, status: &GrpcStatus) {
    // Where it fails, nobody listens any more.
    drop(send_trailers_only(&mut answer, status));
}

impl<W: CallHandler + Unpin> Future for GrpcCall<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.poll_call(context).map(drop)
    }
}
