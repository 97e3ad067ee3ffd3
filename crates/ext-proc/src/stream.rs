//! A [`Processor`] as a stream of replies over a stream of messages: polled in place, without a task or a channel.
//!
//! Invariant: a message is read only when every reply to those before has been taken. So whoever reads slowly at the
//! one end stops the sending at the other.

use crate::{
    clock,
    processor::{Moment, Processor, Replies, Room},
    protocol::{ProcessingRequest, Reply},
};
use futures_util::{FutureExt, Stream, future::BoxFuture};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;
use tonic::Status;

/// What is done with the messages of a stream.
pub(crate) trait Work {
    /// Takes in a message, and puts what is to be said into `replies`. False when nothing more will be said.
    fn take_now(&mut self, message: ProcessingRequest, replies: &mut Replies) -> bool;

    /// Whether the next message may be read. False when nothing more will be said but what is put into `replies`.
    fn poll_room(&mut self, context: &mut Context<'_>, replies: &mut Replies) -> Poll<bool> {
        let _ = (context, replies);
        Poll::Ready(true)
    }
}

/// A [`Processor`] with time, chance and room.
#[derive(Debug)]
pub(crate) struct Timed {
    processor: Processor,
    waits: Option<Box<Waits>>,
}

/// What a request that is held waits with.
struct Waits {
    deadline: Pin<Box<Sleep>>,
    room: Option<BoxFuture<'static, Option<Room>>>,
}

impl std::fmt::Debug for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waits").field("deadline", &self.deadline.deadline()).finish_non_exhaustive()
    }
}

impl Timed {
    pub(crate) fn new(processor: Processor) -> Self {
        Self { processor, waits: None }
    }
}

impl Work for Timed {
    fn take_now(&mut self, message: ProcessingRequest, replies: &mut Replies) -> bool {
        let moment = Moment { now: clock::now(), random: rand::random() };
        self.processor.take(message, moment, replies)
    }

    fn poll_room(&mut self, context: &mut Context<'_>, replies: &mut Replies) -> Poll<bool> {
        if !self.processor.is_holding() {
            self.waits = None;
            return Poll::Ready(true);
        }
        let hold = &self.processor.rules().hold;
        let waits = self.waits.get_or_insert_with(|| {
            Box::new(Waits { deadline: Box::pin(tokio::time::sleep(hold.timeout)), room: None })
        });
        if waits.deadline.as_mut().poll(context).is_ready() {
            self.processor.held_too_long(replies);
            return Poll::Ready(false);
        }
        let Some(units) = self.processor.lacks_room() else { return Poll::Ready(true) };
        let budget = &hold.budget;
        // It is never closed.
        let room =
            waits.room.get_or_insert_with(|| Arc::clone(budget).acquire_many_owned(units).map(Result::ok).boxed());
        if let Some(room) = ready!(room.as_mut().poll(context)) {
            self.processor.give_room(room);
        }
        waits.room = None;
        Poll::Ready(true)
    }
}

/// The replies of one stream.
#[derive(Debug)]
pub(crate) struct ReplyStream<S, W> {
    /// None when nothing more will be said. What is counted at its end is counted before that is sent.
    open: Option<Open<S, W>>,
    replies: Replies,
}

#[derive(Debug)]
struct Open<S, W> {
    messages: S,
    work: W,
}

impl<S, W> ReplyStream<S, W> {
    pub(crate) fn new(messages: S, work: W) -> Self {
        Self { open: Some(Open { messages, work }), replies: Replies::new() }
    }
}

impl<S, W> Stream for ReplyStream<S, W>
where
    S: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
    W: Work + Unpin,
{
    type Item = Result<Reply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(reply) = this.replies.pop_front() {
                return Poll::Ready(Some(Ok(reply)));
            }
            let Some(open) = &mut this.open else { return Poll::Ready(None) };
            if !ready!(open.work.poll_room(context, &mut this.replies)) {
                this.open = None;
                continue;
            }
            let goes_on = match ready!(Pin::new(&mut open.messages).poll_next(context)) {
                Some(Ok(message)) => open.work.take_now(message, &mut this.replies),
                Some(Err(status)) if is_our_word(&status) => {
                    this.open = None;
                    return Poll::Ready(Some(Err(status)));
                }
                // Ends say nothing, see `Processor`.
                Some(Err(_)) | None => false,
            };
            if !goes_on {
                this.open = None;
            }
        }
    }
}

/// Whether it was found here that a message cannot be read or is too long, so that whoever sent it should be told.
fn is_our_word(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::OutOfRange | tonic::Code::Unimplemented)
}
