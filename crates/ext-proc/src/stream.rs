//! A [`Processor`] as a stream of replies over a stream of messages: polled in place, without a task or a channel.
//!
//! Invariant: a message is read only when every reply to those before has been taken. So whoever reads slowly at the
//! one end stops the sending at the other.

use crate::{
    clock,
    processor::{Moment, Processor, Replies},
    protocol::{ProcessingRequest, Reply},
};
use futures_util::Stream;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tonic::Status;

/// What is done with the messages of a stream.
pub(crate) trait Work {
    /// Takes in a message, and puts what is to be said into `replies`. False when nothing more will be said.
    fn take_now(&mut self, message: ProcessingRequest, replies: &mut Replies) -> bool;
}

impl Work for Processor {
    fn take_now(&mut self, message: ProcessingRequest, replies: &mut Replies) -> bool {
        let moment = Moment { now: clock::now(), random: rand::random() };
        self.take(message, moment, replies)
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
