//! Runs a [`Processor`] as the handler of a gRPC call: provides time, random numbers, the buffer budget and the
//! timeout.

use crate::{
    clock,
    grpc::{CallFlow, CallHandler, GrpcStatus, ReplyQueue},
    processor::{CallContext, Permit, Processor},
    proto::{self, Direction},
};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;

#[derive(Debug)]
pub(crate) struct ProcessorCall {
    processor: Processor,
    wait: Option<Box<BufferWait>>,
    message_permit: MessagePermit,
}

/// Budget for a message that must be buffered whole.
#[derive(Default)]
enum MessagePermit {
    #[default]
    None,
    Pending(BoxFuture<'static, Option<Permit>>),
    Granted(Option<Permit>),
    /// The message was handled, but its replies were not sent yet.
    InUse(#[expect(dead_code, reason = "holds the permit until it is dropped")] Option<Permit>),
}

impl std::fmt::Debug for MessagePermit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Pending(_) => "Pending",
            Self::Granted(_) => "Granted",
            Self::InUse(_) => "InUse",
        })
    }
}

/// Timer and pending permit of a request that is buffered.
struct BufferWait {
    deadline: Pin<Box<Sleep>>,
    permit: Option<BoxFuture<'static, Option<Permit>>>,
}

impl std::fmt::Debug for BufferWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferWait").field("deadline", &self.deadline.deadline()).finish_non_exhaustive()
    }
}

impl ProcessorCall {
    pub(crate) fn new(processor: Processor) -> Self {
        Self { processor, wait: None, message_permit: MessagePermit::None }
    }
}

impl CallHandler for ProcessorCall {
    type Message = proto::ProcessingRequest;

    fn handle_message(&mut self, message: proto::ProcessingRequest, replies: &mut ReplyQueue) -> CallFlow {
        if let MessagePermit::Granted(permit) = std::mem::take(&mut self.message_permit) {
            self.message_permit = MessagePermit::InUse(permit);
        }
        let context = CallContext { now: clock::now(), random: rand::random() };
        if self.processor.handle_message(message, context, replies) {
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
        let budget = &self.processor.shared().buffer;
        let wait = self.wait.get_or_insert_with(|| {
            Box::new(BufferWait { deadline: Box::pin(tokio::time::sleep(budget.timeout)), permit: None })
        });
        if wait.deadline.as_mut().poll(context).is_ready() {
            self.processor.time_out_buffer(replies);
            return Poll::Ready(CallFlow::End(GrpcStatus::OK));
        }
        let Some(bytes) = self.processor.needs_permit() else { return Poll::Ready(CallFlow::Continue) };
        let pending = wait.permit.get_or_insert_with(|| budget.acquire(bytes).boxed());
        if let Some(permit) = ready!(pending.as_mut().poll(context)) {
            self.processor.set_permit(permit);
        }
        wait.permit = None;
        Poll::Ready(CallFlow::Continue)
    }

    fn poll_permit(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.message_permit {
                MessagePermit::Granted(_) => return Poll::Ready(()),
                MessagePermit::Pending(permit) => {
                    self.message_permit = MessagePermit::Granted(ready!(permit.as_mut().poll(context)));
                }
                MessagePermit::None | MessagePermit::InUse(_) => {
                    self.message_permit = MessagePermit::Pending(self.processor.shared().buffer.acquire(bytes).boxed());
                }
            }
        }
    }
}
