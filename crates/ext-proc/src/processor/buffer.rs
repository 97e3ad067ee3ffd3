//! Buffering of bodies until their model is known, if headers depend on it.
//!
//! Invariants: one request buffers at most [`BufferBudget::limit`] bytes, and all together little more than the budget.
//! A request that does not get its share is not read from any more, so that Envoy stops reading from its client. The
//! share for the whole body is acquired in one step, so that no two requests wait for each other.

use crate::proto;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use rollora_router::headers::HeaderLookup;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that a request may buffer outside the budget: what arrives before reading can be stopped.
const UNBUDGETED_BYTES: usize = 64 * 1024;
/// Bytes per semaphore permit.
const PERMIT_BYTES: usize = 1024;

/// A share of the budget, released on drop.
pub(crate) type Permit = OwnedSemaphorePermit;

/// Limits of buffering, shared by all requests.
#[derive(Debug)]
pub(crate) struct BufferBudget {
    /// Maximum number of buffered bytes of one request.
    pub(crate) limit: usize,
    /// Maximum time between two chunks while a part is buffered.
    pub(crate) timeout: Duration,
    /// Free part of `total_permits`.
    permits: Arc<Semaphore>,
    total_permits: u32,
}

impl BufferBudget {
    /// Creates limits of `limit` bytes and `timeout` for one request, and `budget` bytes (at least `limit`) for all
    /// together.
    pub(crate) fn new(limit: usize, budget: usize, timeout: Duration) -> Self {
        let total_permits = budget.max(limit).div_ceil(PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let total_permits = u32::try_from(total_permits).unwrap_or(u32::MAX);
        Self { limit, timeout, permits: Arc::new(Semaphore::new(total_permits as usize)), total_permits }
    }

    /// Acquires budget for `bytes` bytes, or all of it if `bytes` is more than that.
    pub(crate) fn acquire(&self, bytes: usize) -> impl Future<Output = Option<Permit>> + Send + use<> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES))
            .map_or(self.total_permits, |permits| permits.min(self.total_permits));
        let permit = Arc::clone(&self.permits).acquire_many_owned(permits);
        // The semaphore is never closed.
        async move { permit.await.ok() }
    }
}

/// The part of a request body that has arrived.
#[derive(Debug)]
pub(super) struct BufferedBody {
    slices: Vec<Bytes>,
    length: usize,
    /// Value of `content-length`, if there is one.
    content_length: Option<usize>,
    permit: Option<Permit>,
}

impl BufferedBody {
    pub(super) fn new(headers: &proto::HeaderMap) -> Self {
        let content_length =
            headers.first(CONTENT_LENGTH.as_str()).and_then(|value| str::from_utf8(value).ok()?.parse().ok());
        Self { slices: Vec::new(), length: 0, content_length, permit: None }
    }

    pub(super) fn push(&mut self, mut slices: Vec<Bytes>) {
        self.length += slices.iter().map(Bytes::len).sum::<usize>();
        self.slices.append(&mut slices);
    }

    /// Returns the buffered slices followed by `slices`.
    pub(super) fn joined_with(&self, mut slices: Vec<Bytes>) -> Vec<Bytes> {
        let mut all = self.slices.clone();
        all.append(&mut slices);
        all
    }

    pub(super) fn exceeds_limit(&self, budget: &BufferBudget) -> bool {
        self.length > budget.limit
    }

    pub(super) fn needs_permit(&self, budget: &BufferBudget) -> Option<usize> {
        if self.length <= UNBUDGETED_BYTES || self.permit.is_some() {
            return None;
        }
        Some(self.content_length.map_or(budget.limit, |length| length.max(self.length).min(budget.limit)))
    }

    pub(super) fn set_permit(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }
}
