//! One call, polled in place: what comes is taken in, what is said goes out.
//!
//! Invariant: of what has come, no more is taken than the stream's window, until every reply to it has been given to the
//! connection; and no reply is given to it that the other end has no room for. So whoever reads slowly at the one end
//! stops the sending at the other, and what all calls of a connection hold is no more than the connection's windows,
//! besides messages that have to be put together.

use super::{Incoming, Status, messages::Messages, outbox::Outbox, outbox::Slices};
use crate::{
    processor::LONGEST_PART,
    protocol::{Direction, Reply},
};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Replies that are waiting to be written.
pub(crate) type Replies = VecDeque<Reply>;

/// How a call goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// With the next message.
    Message,
    /// It ends, with this status, after what is in the replies.
    End(Status),
}

/// What is done with the messages of a call.
pub(crate) trait Work {
    /// What comes.
    type Message: Incoming;

    /// Takes in a message, or a piece of one, and puts what is to be said into `replies`.
    fn take(&mut self, message: Self::Message, replies: &mut Replies) -> Next;

    /// Whether long messages with a body of this direction may be given in pieces.
    fn takes_pieces(&self, _direction: Direction) -> bool {
        false
    }

    /// When there is room for a long message of so many bytes, which has to be put together before it is taken in.
    fn poll_room(&mut self, _bytes: usize, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// When and how it goes on before the next message is taken in; also here something can be said.
    fn poll_next(&mut self, _context: &mut Context<'_>, _replies: &mut Replies) -> Poll<Next> {
        Poll::Ready(Next::Message)
    }
}

/// A call. Ends when the last has been said, or when nobody listens any more.
#[derive(Debug)]
pub(crate) struct Call<W> {
    incoming: RecvStream,
    /// What has been taken in, and for which no room has been given back.
    taken: usize,
    messages: Messages,
    work: W,
    replies: Replies,
    outbox: Outbox,
    answer: Answer,
    end: Option<Status>,
}

/// The answer, which begins with what is said first, so that both are sent together.
#[derive(Debug)]
enum Answer {
    Due(SendResponse<Slices>),
    Begun(SendStream<Slices>),
}

/// Nobody listens any more.
#[derive(Debug)]
struct Gone;

impl From<h2::Error> for Gone {
    /// How streams end says nothing, see [`crate::processor`].
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl<W: Work> Call<W> {
    /// A call in which messages have at most the length `longest`.
    pub(crate) fn new(incoming: RecvStream, answer: SendResponse<Slices>, longest: usize, work: W) -> Self {
        Self {
            incoming,
            taken: 0,
            messages: Messages::new(longest),
            work,
            replies: Replies::new(),
            outbox: Outbox::default(),
            answer: Answer::Due(answer),
            end: None,
        }
    }

    fn poll_call(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut waits = false;
        loop {
            ready!(self.poll_send(context))?;
            if let Some(status) = &self.end {
                return Poll::Ready(self.answer.end(status));
            }
            self.give_back()?;
            if waits {
                let answer = self.answer.begin()?;
                return answer.poll_reset(context).map(|_| Err(Gone));
            }
            waits = self.poll_fill(context)?.is_pending();
            self.replies.drain(..).for_each(|reply| self.outbox.push(reply));
        }
    }

    /// Takes in what is there: until it has an end, or enough to say, or nothing more is there.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Gone> {
        let mut said = 0;
        // When a whole part is waiting to be sent nothing more is taken in.
        while self.end.is_none() && said < LONGEST_PART {
            let Poll::Ready(next) = self.work.poll_next(context, &mut self.replies) else { return Ok(Poll::Pending) };
            let next = match next {
                Next::Message => match self.messages.next(|direction| self.work.takes_pieces(direction)) {
                    Ok(Some(message)) => self.work.take(message, &mut self.replies),
                    Err(status) => Next::End(status),
                    Ok(None) if self.poll_room(context).is_pending() => return Ok(Poll::Pending),
                    Ok(None) => match self.incoming.poll_data(context) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(None) => Next::End(Status::OK),
                        Poll::Ready(Some(chunk)) => {
                            let chunk = chunk?;
                            self.taken += chunk.len();
                            self.messages.push(chunk);
                            Next::Message
                        }
                    },
                },
                end @ Next::End(_) => end,
            };
            if let Next::End(status) = next {
                self.end = Some(status);
            }
            said = self.replies.iter().map(Reply::len).sum();
        }
        Ok(Poll::Ready(()))
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.messages.collects() {
            Some(bytes) => self.work.poll_room(bytes, context),
            None => Poll::Ready(()),
        }
    }

    /// Gives everything that is to be said to the connection, as the other end has room for it.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while self.outbox.len() > 0 {
            let answer = self.answer.begin()?;
            answer.reserve_capacity(self.outbox.len());
            let room = match answer.capacity() {
                0 => match ready!(answer.poll_capacity(context)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(Gone)),
                },
                room => room,
            };
            answer.send_data(self.outbox.take(room), false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// What was taken in is done with: the other end may send as much again.
    fn give_back(&mut self) -> Result<(), Gone> {
        Ok(self.incoming.flow_control().release_capacity(std::mem::take(&mut self.taken))?)
    }
}

impl Answer {
    fn begin(&mut self) -> Result<&mut SendStream<Slices>, Gone> {
        if let Self::Due(due) = self {
            *self = Self::Begun(due.send_response(head(), false)?);
        }
        match self {
            Self::Begun(begun) => Ok(begun),
            Self::Due(_) => Err(Gone),
        }
    }

    fn end(&mut self, status: &Status) -> Result<(), Gone> {
        match self {
            Self::Due(due) => end_at_once(due, status),
            Self::Begun(begun) => {
                let mut trailers = HeaderMap::with_capacity(2);
                status.write(&mut trailers);
                Ok(begun.send_trailers(trailers)?)
            }
        }
    }
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head
}

fn end_at_once(answer: &mut SendResponse<Slices>, status: &Status) -> Result<(), Gone> {
    let mut head = head();
    status.write(head.headers_mut());
    answer.send_response(head, true)?;
    Ok(())
}

/// Ends a call before it begins.
pub(crate) fn refuse(mut answer: SendResponse<Slices>, status: &Status) {
    // Where it fails, nobody listens any more.
    drop(end_at_once(&mut answer, status));
}

impl<W: Work + Unpin> Future for Call<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.poll_call(context).map(drop)
    }
}
