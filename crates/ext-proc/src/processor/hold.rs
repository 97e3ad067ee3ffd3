//! Bodies that wait until their model is known, because headers have to tell it first.
//!
//! Invariants: one request holds at most [`Hold::most`], and all together little more than the budget. Whoever does not
//! get room is not read from any more, so that Envoy stops reading from the client; room for all that may come is taken
//! at once, so that no two wait for each other.

use crate::protocol::HeaderMap;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use rollora_router::headers::Headers;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So much may be held without room in the budget: what has come before anybody could be stopped.
const FREE: usize = 64 * 1024;
/// What room is counted in.
const UNIT: usize = 1024;

/// Room in the budget, until it is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

/// How much is held, and how long.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Of one request.
    pub(crate) most: usize,
    pub(crate) timeout: Duration,
    /// The room that is left for all together, of `units`.
    budget: Arc<Semaphore>,
    units: u32,
}

impl Hold {
    /// At most `most` of one request for at most `timeout`, and `budget` of all together, which is enough for one.
    pub(crate) fn new(most: usize, budget: usize, timeout: Duration) -> Self {
        let units = budget.max(most).div_ceil(UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Self { most, timeout, budget: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Room for so many bytes, when there is some; all there is for whoever needs more than that.
    pub(crate) fn room(&self, bytes: usize) -> impl Future<Output = Option<Room>> + Send + use<> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).map_or(self.units, |units| units.min(self.units));
        let room = Arc::clone(&self.budget).acquire_many_owned(units);
        // It is never closed.
        async move { room.await.ok() }
    }
}

/// The body of one request, as far as it has come.
#[derive(Debug)]
pub(super) struct Held {
    slices: Vec<Bytes>,
    length: usize,
    /// How long the body is, where that is said.
    said: Option<usize>,
    room: Option<Room>,
}

impl Held {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let said = headers.first(CONTENT_LENGTH.as_str()).and_then(|said| str::from_utf8(said).ok()?.parse().ok());
        Self { slices: Vec::new(), length: 0, said, room: None }
    }

    pub(super) fn add(&mut self, mut slices: Vec<Bytes>) {
        self.length += slices.iter().map(Bytes::len).sum::<usize>();
        self.slices.append(&mut slices);
    }

    /// All that was held, and these behind it.
    pub(super) fn release(&self, mut slices: Vec<Bytes>) -> Vec<Bytes> {
        let mut all = self.slices.clone();
        all.append(&mut slices);
        all
    }

    pub(super) fn is_too_much(&self, hold: &Hold) -> bool {
        self.length > hold.most
    }

    pub(super) fn lacks_room(&self, hold: &Hold) -> Option<usize> {
        if self.length <= FREE || self.room.is_some() {
            return None;
        }
        Some(self.said.map_or(hold.most, |said| said.max(self.length).min(hold.most)))
    }

    pub(super) fn give_room(&mut self, room: Room) {
        self.room = Some(room);
    }
}
