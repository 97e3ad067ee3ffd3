//! A [`Processor`] as the work of a call: with time, chance and room.

use crate::{
    clock,
    grpc::{CallFlow, CallHandler, GrpcStatus, ReplyQueue},
    processor::{CallContext, Permit, Processor},
    proto::{Direction, ProcessingRequest},
};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;

/// A [`Processor`] with time, chance and room.
#[derive(Debug)]
pub(crate) struct ProcessorCall {
    processor: Processor,
    wait: Option<Box<BufferWait>>,
    message_permit: MessagePermit,
}

/// The room of a message that has to be put together.
#[derive(Default)]
enum MessagePermit {
    /// There is none such.
    #[default]
    None,
    Pending(BoxFuture<'static, Option<Permit>>),
    Granted(Option<Permit>),
    /// The message has been taken in, but what is said to it has not left.
    InUse(#[expect(dead_code, reason = "room until it is dropped")] Option<Permit>),
}

impl std::fmt::Debug for MessagePermit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "No",
            Self::Pending(_) => "Waits",
            Self::Granted(_) => "Has",
            Self::InUse(_) => "Taken",
        })
    }
}

/// What a request that is held waits with.
struct BufferWait {
    deadline: Pin<Box<Sleep>>,
    permit: Option<BoxFuture<'static, Option<Permit>>>,
}

impl std::fmt::Debug for BufferWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waits").field("deadline", &self.deadline.deadline()).finish_non_exhaustive()
    }
}

impl ProcessorCall {
    pub(crate) fn new(processor: Processor) -> Self {
        Self { processor, wait: None, message_permit: MessagePermit::None }
    }
}

impl CallHandler for ProcessorCall {
    type Message = ProcessingRequest;

    fn handle_message(&mut self, message: ProcessingRequest, replies: &mut ReplyQueue) -> CallFlow {
        if let MessagePermit::Granted(room) = std::mem::take(&mut self.message_permit) {
            self.message_permit = MessagePermit::InUse(room);
        }
        let moment = CallContext { now: clock::now(), random: rand::random() };
        if self.processor.handle_message(message, moment, replies) {
            CallFlow::Continue
        } else {
            CallFlow::End(GrpcStatus::OK)
        }
    }

    fn accepts_chunks(&self, direction: Direction) -> bool {
        self.processor.accepts_chunks(direction)
    }

    fn poll_ready(&mut self, context: &mut Context<'_>, replies: &mut ReplyQueue) -> Poll<CallFlow> {
        if matches!(self.message_permit, MessagePermit::InUse(_)) {
            self.message_permit = MessagePermit::None;
        }
        if !self.processor.is_buffering() {
            self.wait = None;
            return Poll::Ready(CallFlow::Continue);
        }
        let hold = &self.processor.shared().buffer;
        let waits = self.wait.get_or_insert_with(|| {
            Box::new(BufferWait { deadline: Box::pin(tokio::time::sleep(hold.timeout)), permit: None })
        });
        if waits.deadline.as_mut().poll(context).is_ready() {
            self.processor.time_out_buffer(replies);
            return Poll::Ready(CallFlow::End(GrpcStatus::OK));
        }
        let Some(bytes) = self.processor.needs_permit() else { return Poll::Ready(CallFlow::Continue) };
        let room = waits.permit.get_or_insert_with(|| hold.acquire(bytes).boxed());
        if let Some(room) = ready!(room.as_mut().poll(context)) {
            self.processor.set_permit(room);
        }
        waits.permit = None;
        Poll::Ready(CallFlow::Continue)
    }

    fn poll_permit(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.message_permit {
                MessagePermit::Granted(_) => return Poll::Ready(()),
                MessagePermit::Pending(room) => {
                    self.message_permit = MessagePermit::Granted(ready!(room.as_mut().poll(context)))
                }
                MessagePermit::None | MessagePermit::InUse(_) => {
                    self.message_permit = MessagePermit::Pending(self.processor.shared().buffer.acquire(bytes).boxed());
                }
            }
        }
    }
}
