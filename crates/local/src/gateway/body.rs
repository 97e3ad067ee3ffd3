//! Bodies: a request's is held whole, within limits, because its model decides where it goes; an answer's is passed on
//! as it comes.

#[cfg(test)]
mod tests;

use super::{pool::Connection, refusal::Refusal, servers::Lease};
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
const PAUSE: Duration = Duration::from_mins(1);

/// How much of all requests' bodies may be held at once.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
}

/// What one request holds of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0) })
    }
}

impl Hold {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Takes `more` bytes; false where that would be too much for all requests together.
    fn grow(&mut self, more: usize) -> bool {
        let before = self.budget.held.fetch_add(more, Relaxed);
        let fits = before + more <= self.budget.limit;
        if fits {
            self.bytes += more;
        } else {
            self.budget.held.fetch_sub(more, Relaxed);
        }
        fits
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// Reads a request's body whole. What it takes of the budget is given back with the hold.
pub(super) async fn read<B>(mut body: B, limit: usize, budget: &Arc<Budget>) -> Result<(Bytes, Hold), Refusal>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut hold = Hold::new(budget);
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(router::RequestRefusal::BodyTooLarge { limit }.into());
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while !body.is_end_stream() {
        let frame = timeout(PAUSE, body.frame()).await.map_err(|_| Refusal::Slow { seconds: PAUSE.as_secs() })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Refusal::BadBody(error.to_string()))?;
        // What is no data are trailers, which concern this hop only.
        let Ok(data) = frame.into_data() else { continue };
        if hold.bytes + data.len() > limit {
            return Err(router::RequestRefusal::BodyTooLarge { limit }.into());
        }
        if !hold.grow(data.len()) {
            return Err(Refusal::Busy);
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
pub(super) struct Chunks {
    chunks: VecDeque<Bytes>,
    /// Kept until the last copy is gone.
    _hold: Option<Arc<Hold>>,
}

impl Chunks {
    pub(super) fn new(chunks: impl IntoIterator<Item = Bytes>, hold: Hold) -> Self {
        let chunks: VecDeque<_> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        let hold = (!chunks.is_empty()).then(|| Arc::new(hold));
        Self { chunks, _hold: hold }
    }
}

impl Body for Chunks {
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
pub(super) enum Reply {
    /// The gateway's own words.
    Own(Option<Bytes>),
    /// A server's answer.
    Answer(Box<Answer>),
}

/// A server's answer, passed on as it comes. Dropped before its end, it takes the connection with it, and so the
/// server learns that the client is gone.
#[derive(Debug)]
pub(super) struct Answer {
    incoming: Incoming,
    under_way: Option<UnderWay>,
}

/// What an answer holds until its end.
#[derive(Debug)]
struct UnderWay {
    connection: Connection,
    lease: Lease,
    exchange: Exchange,
}

impl Answer {
    pub(super) fn new(incoming: Incoming, connection: Connection, lease: Lease, exchange: Exchange) -> Self {
        let mut answer = Self { incoming, under_way: Some(UnderWay { connection, lease, exchange }) };
        answer.finish_if_ended();
        answer
    }

    fn finish_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(UnderWay { connection, lease, exchange }) = self.under_way.take() {
            lease.server.pool.give_back(connection);
            exchange.end(clock::now());
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        match &frame {
            Some(Ok(_)) => self.finish_if_ended(),
            None => self.finish(),
            Some(Err(error)) => {
                if let Some(under_way) = &self.under_way {
                    let server = &under_way.lease.server;
                    tracing::debug!(server = server.name, %error, "answer broken off");
                    server.suspect();
                }
            }
        }
        Poll::Ready(frame)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(UnderWay { exchange, .. }) = self.under_way.take() {
            exchange.end(clock::now());
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Answer(answer) => answer.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Answer(answer) => answer.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Answer(answer) => answer.incoming.size_hint(),
        }
    }
}
