//! Bodies: a request's is held whole, within limits, because its model decides where it goes; an answer's is passed on
//! as it comes.

#[cfg(test)]
mod tests;

use super::{pool::ServerConnection, refusal::GatewayRefusal, servers::InFlightGuard};
use crate::clock;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rollora_router::{exchange::Exchange, refusal as router};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::timeout;

/// How long a client may pause in the middle of a body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// How much of all requests' bodies may be held at once.
#[derive(Debug)]
pub(super) struct BodyBudget {
    limit: usize,
    used: AtomicUsize,
}

/// What one request holds of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct BufferPermit {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyBudget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }
}

impl BufferPermit {
    fn new(budget: &Arc<BodyBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Takes `more` bytes; false where that would be too much for all requests together.
    fn try_grow(&mut self, more: usize) -> bool {
        let before = self.budget.used.fetch_add(more, Relaxed);
        let fits = before + more <= self.budget.limit;
        if fits {
            self.bytes += more;
        } else {
            self.budget.used.fetch_sub(more, Relaxed);
        }
        fits
    }
}

impl Drop for BufferPermit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// Reads a request's body whole. What it takes of the budget is given back with the hold.
pub(super) async fn buffer_body<B>(
    mut body: B,
    limit: usize,
    budget: &Arc<BodyBudget>,
) -> Result<(Bytes, BufferPermit), GatewayRefusal>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut hold = BufferPermit::new(budget);
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(router::RequestRefusal::BodyTooLarge { limit }.into());
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while !body.is_end_stream() {
        let frame = timeout(BODY_IDLE_TIMEOUT, body.frame())
            .await
            .map_err(|_| GatewayRefusal::BodyTimeout { seconds: BODY_IDLE_TIMEOUT.as_secs() })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| GatewayRefusal::BadBody(error.to_string()))?;
        // What is no data are trailers, which concern this hop only.
        let Ok(data) = frame.into_data() else { continue };
        if hold.bytes + data.len() > limit {
            return Err(router::RequestRefusal::BodyTooLarge { limit }.into());
        }
        if !hold.try_grow(data.len()) {
            return Err(GatewayRefusal::BufferExhausted);
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.reserve(announced.max(first.len() + data.len()));
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, hold))
}

/// A request's body, held whole. Cheap to clone, so that it can be sent a second time.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyChunks {
    chunks: VecDeque<Bytes>,
    /// Kept until the last copy is gone.
    _permit: Option<Arc<BufferPermit>>,
}

impl BodyChunks {
    pub(super) fn new(chunks: impl IntoIterator<Item = Bytes>, hold: BufferPermit) -> Self {
        let chunks: VecDeque<_> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        let hold = (!chunks.is_empty()).then(|| Arc::new(hold));
        Self { chunks, _permit: hold }
    }
}

impl Body for BodyChunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

/// The body of what a client is answered.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// The gateway's own words.
    Local(Option<Bytes>),
    /// A server's answer.
    Server(Box<ServerResponseBody>),
}

/// A server's answer, passed on as it comes. Dropped before its end, it takes the connection with it, and so the
/// server learns that the client is gone.
#[derive(Debug)]
pub(super) struct ServerResponseBody {
    incoming: Incoming,
    active: Option<ActiveResponse>,
}

/// What an answer holds until its end.
#[derive(Debug)]
struct ActiveResponse {
    connection: ServerConnection,
    guard: InFlightGuard,
    exchange: Exchange,
}

impl ServerResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: ServerConnection,
        lease: InFlightGuard,
        exchange: Exchange,
    ) -> Self {
        let mut answer = Self { incoming, active: Some(ActiveResponse { connection, guard: lease, exchange }) };
        answer.finish_if_ended();
        answer
    }

    fn finish_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(ActiveResponse { connection, guard: lease, exchange }) = self.active.take() {
            lease.server.pool.put(connection);
            exchange.end(clock::now());
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        match &frame {
            Some(Ok(_)) => self.finish_if_ended(),
            None => self.finish(),
            Some(Err(error)) => {
                if let Some(under_way) = &self.active {
                    let server = &under_way.guard.server;
                    tracing::debug!(server = server.name, %error, "answer broken off");
                    server.mark_suspect();
                }
            }
        }
        Poll::Ready(frame)
    }
}

impl Drop for ServerResponseBody {
    fn drop(&mut self) {
        if let Some(ActiveResponse { exchange, .. }) = self.active.take() {
            exchange.end(clock::now());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Server(answer) => answer.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_none(),
            Self::Server(answer) => answer.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Server(answer) => answer.incoming.size_hint(),
        }
    }
}
