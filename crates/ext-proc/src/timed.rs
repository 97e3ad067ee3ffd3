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
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;

/// A [`Processor`] with time, chance and room.
#[derive(Debug)]
pub(crate) struct Timed {
    processor: Processor,
    waits: Option<Box<Waits>>,
    whole: Whole,
}

/// The room of a message that has to be put together.
#[derive(Default)]
enum Whole {
    /// There is none such.
    #[default]
    No,
    Waits(BoxFuture<'static, Option<Room>>),
    Has(Option<Room>),
    /// The message has been taken in, but what is said to it has not left.
    Taken(#[expect(dead_code, reason = "room until it is dropped")] Option<Room>),
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::No => "No",
            Self::Waits(_) => "Waits",
            Self::Has(_) => "Has",
            Self::Taken(_) => "Taken",
        })
    }
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
        Self { processor, waits: None, whole: Whole::No }
    }
}

impl Work for Timed {
    type Message = ProcessingRequest;

    fn take(&mut self, message: ProcessingRequest, replies: &mut Replies) -> Next {
        if let Whole::Has(room) = std::mem::take(&mut self.whole) {
            self.whole = Whole::Taken(room);
        }
        let moment = Moment { now: clock::now(), random: rand::random() };
        if self.processor.take(message, moment, replies) { Next::Message } else { Next::End(Status::OK) }
    }

    fn takes_pieces(&self, direction: Direction) -> bool {
        self.processor.takes_pieces(direction)
    }

    fn poll_next(&mut self, context: &mut Context<'_>, replies: &mut Replies) -> Poll<Next> {
        if matches!(self.whole, Whole::Taken(_)) {
            self.whole = Whole::No;
        }
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
        let Some(bytes) = self.processor.lacks_room() else { return Poll::Ready(Next::Message) };
        let room = waits.room.get_or_insert_with(|| hold.room(bytes).boxed());
        if let Some(room) = ready!(room.as_mut().poll(context)) {
            self.processor.give_room(room);
        }
        waits.room = None;
        Poll::Ready(Next::Message)
    }

    fn poll_room(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.whole {
                Whole::Has(_) => return Poll::Ready(()),
                Whole::Waits(room) => self.whole = Whole::Has(ready!(room.as_mut().poll(context))),
                Whole::No | Whole::Taken(_) => {
                    self.whole = Whole::Waits(self.processor.rules().hold.room(bytes).boxed());
                }
            }
        }
    }
}
