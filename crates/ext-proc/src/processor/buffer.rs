//! Bodies that wait until their model is known, because headers have to tell it first.
//!
//! Invariants: one request holds at most [`Hold::most`], and all together little more than the budget. Whoever does not
//! get room is not read from any more, so that Envoy stops reading from the client; room for all that may come is taken
//! at once, so that no two wait for each other.

use crate::proto::HeaderMap;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use rollora_router::headers::HeaderLookup;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So much may be held without room in the budget: what has come before anybody could be stopped.
const UNBUDGETED_BYTES: usize = 64 * 1024;
/// What room is counted in.
const PERMIT_BYTES: usize = 1024;

/// Room in the budget, until it is dropped.
pub(crate) type Permit = OwnedSemaphorePermit;

/// How much is held, and how long.
#[derive(Debug)]
pub(crate) struct BufferBudget {
    /// Of one request.
    pub(crate) limit: usize,
    pub(crate) timeout: Duration,
    /// The room that is left for all together, of `units`.
    permits: Arc<Semaphore>,
    total_permits: u32,
}

impl BufferBudget {
    /// At most `most` of one request for at most `timeout`, and `budget` of all together, which is enough for one.
    pub(crate) fn new(limit: usize, budget: usize, timeout: Duration) -> Self {
        let units = budget.max(limit).div_ceil(PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let total_permits = u32::try_from(units).unwrap_or(u32::MAX);
        Self { limit, timeout, permits: Arc::new(Semaphore::new(total_permits as usize)), total_permits }
    }

    /// Room for so many bytes, when there is some; all there is for whoever needs more than that.
    pub(crate) fn acquire(&self, bytes: usize) -> impl Future<Output = Option<Permit>> + Send + use<> {
        let units = u32::try_from(bytes.div_ceil(PERMIT_BYTES))
            .map_or(self.total_permits, |units| units.min(self.total_permits));
        let room = Arc::clone(&self.permits).acquire_many_owned(units);
        // It is never closed.
        async move { room.await.ok() }
    }
}

/// The body of one request, as far as it has come.
#[derive(Debug)]
pub(super) struct BufferedBody {
    slices: Vec<Bytes>,
    length: usize,
    /// How long the body is, where that is said.
    content_length: Option<usize>,
    permit: Option<Permit>,
}

impl BufferedBody {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let content_length =
            headers.first(CONTENT_LENGTH.as_str()).and_then(|said| str::from_utf8(said).ok()?.parse().ok());
        Self { slices: Vec::new(), length: 0, content_length, permit: None }
    }

    pub(super) fn push(&mut self, mut slices: Vec<Bytes>) {
        self.length += slices.iter().map(Bytes::len).sum::<usize>();
        self.slices.append(&mut slices);
    }

    /// All that was held, and these behind it.
    pub(super) fn joined_with(&self, mut slices: Vec<Bytes>) -> Vec<Bytes> {
        let mut all = self.slices.clone();
        all.append(&mut slices);
        all
    }

    pub(super) fn exceeds_limit(&self, hold: &BufferBudget) -> bool {
        self.length > hold.limit
    }

    pub(super) fn needs_permit(&self, hold: &BufferBudget) -> Option<usize> {
        if self.length <= UNBUDGETED_BYTES || self.permit.is_some() {
            return None;
        }
        Some(self.content_length.map_or(hold.limit, |said| said.max(self.length).min(hold.limit)))
    }

    pub(super) fn set_permit(&mut self, room: Permit) {
        self.permit = Some(room);
    }
}
