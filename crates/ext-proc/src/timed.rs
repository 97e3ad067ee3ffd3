//! A [`Processor`] as the work of a call: with time, chance and room.

use crate::{
    clock,
    grpc::{Next, Replies, Status, Work},
    processor::{Moment, Processor, Room},
    protocol::{Direction, ProcessingRequest},
};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;

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
    type Message = ProcessingRequest;

    fn take(&mut self, message: ProcessingRequest, replies: &mut Replies) -> Next {
        let moment = Moment { now: clock::now(), random: rand::random() };
        if self.processor.take(message, moment, replies) { Next::Message } else { Next::End(Status::OK) }
    }

    fn takes_pieces(&self, direction: Direction) -> bool {
        self.processor.takes_pieces(direction)
    }

    fn poll_next(&mut self, context: &mut Context<'_>, replies: &mut Replies) -> Poll<Next> {
        if !self.processor.is_holding() {
            self.waits = None;
            return Poll::Ready(Next::Message);
        }
        let hold = &self.processor.rules().hold;
        let waits = self.waits.get_or_insert_with(|| {
            Box::new(Waits { deadline: Box::pin(tokio::time::sleep(hold.timeout)), room: None })
        });
        if waits.deadline.as_mut().poll(context).is_ready() {
            self.processor.held_too_long(replies);
            return Poll::Ready(Next::End(Status::OK));
        }
        let Some(units) = self.processor.lacks_room() else { return Poll::Ready(Next::Message) };
        let budget = &hold.budget;
        // It is never closed.
        let room =
            waits.room.get_or_insert_with(|| Arc::clone(budget).acquire_many_owned(units).map(Result::ok).boxed());
        if let Some(room) = ready!(room.as_mut().poll(context)) {
            self.processor.give_room(room);
        }
        waits.room = None;
        Poll::Ready(Next::Message)
    }
}
