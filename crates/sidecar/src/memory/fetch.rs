//! Bringing what a hub has into the folder that vLLM reads.
//!
//! Nothing of it belongs to a process of the server: a fetch goes on while vLLM is started again, and so does the wait
//! after one that failed.

use super::{Adapter, Memory};
use crate::backoff::Backoff;
use jiff::Timestamp;
use rollora_api::{names::AdapterId, sidecar_status::ReportedError};
use rollora_store::{FetchError, FetchProgress, FetchReason, FetchedAdapter, SourceRef};
use std::time::Duration;

/// What only a person can change is asked for again this slowly at first.
const FOR_A_PERSON: Duration = Duration::from_mins(1);

/// The fetches of one adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetching {
    /// The one under way.
    pub under_way: Option<FetchUnderWay>,
    /// Whether it is there, as far as is known.
    pub have: bool,
    /// The commit that is there.
    pub commit: Option<String>,
    /// How far the last fetch came.
    pub progress: FetchProgress,
    /// Failures in a row since the entry changed.
    pub attempts: u32,
    /// Nothing is tried before.
    pub next_try: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<ReportedError>,
    /// Whether that needs a person.
    pub needs_person: bool,
}

/// A fetch that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchUnderWay {
    /// Tells it from others of the same adapter.
    pub number: u64,
    /// Since when.
    pub since: Timestamp,
}

impl Memory {
    /// A fetch of `id` begins; the number that tells it from others.
    pub fn fetch_began(&mut self, id: &AdapterId, now: Timestamp) -> u64 {
        let number = self.next_sequence();
        if let Some(adapter) = self.adapters.get_mut(id) {
            adapter.fetch.under_way = Some(FetchUnderWay { number, since: now });
            adapter.fetch.progress = FetchProgress::default();
        }
        number
    }

    /// Whether somebody still wants that fetch.
    pub fn is_fetching(&self, id: &AdapterId, number: u64) -> bool {
        self.fetch_of(id).is_some_and(|under_way| under_way.number == number)
    }

    /// How far it is.
    pub fn fetch_progressed(&mut self, id: &AdapterId, number: u64, progress: FetchProgress) {
        if self.is_fetching(id, number)
            && let Some(adapter) = self.adapters.get_mut(id)
        {
            adapter.fetch.progress = progress;
        }
    }

    /// It has ended; `jitter` from 0 to 1 spreads the next attempt.
    pub fn fetch_ended(
        &mut self,
        id: &AdapterId,
        number: u64,
        ended: Result<FetchedAdapter, FetchError>,
        jitter: f64,
        now: Timestamp,
    ) {
        if !self.is_fetching(id, number) {
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        match ended {
            Ok(fetched) => {
                let progress = adapter.fetch.progress;
                adapter.fetch = Fetching { have: true, commit: fetched.commit, progress, ..Fetching::default() };
            }
            Err(error) => adapter.fetch.failed(&error, backoff, jitter, now),
        }
    }

    fn fetch_of(&self, id: &AdapterId) -> Option<FetchUnderWay> {
        self.adapters.get(id).and_then(|adapter| adapter.fetch.under_way)
    }
}

impl Fetching {
    /// The failures so far are about something that has changed.
    pub(super) fn start_afresh(&mut self) {
        self.attempts = 0;
        self.next_try = None;
        self.last_error = None;
        self.needs_person = false;
    }

    fn failed(&mut self, error: &FetchError, backoff: Backoff, jitter: f64, now: Timestamp) {
        self.under_way = None;
        self.attempts += 1;
        self.needs_person = needs_person(error.reason);
        self.last_error =
            Some(ReportedError { reason: error.reason.as_str().to_owned(), message: error.message.clone() });
        let backoff =
            if self.needs_person { Backoff { first: backoff.first.max(FOR_A_PERSON), ..backoff } } else { backoff };
        let wait = backoff.after(self.attempts, jitter);
        self.next_try = Some(now + error.retry_after.map_or(wait, |asked| wait.max(asked)));
    }
}

/// Whether another try alone cannot help.
fn needs_person(reason: FetchReason) -> bool {
    match reason {
        FetchReason::HubUnauthorized
        | FetchReason::HubNotFound
        | FetchReason::TooLarge
        | FetchReason::RankTooHigh
        | FetchReason::BadAdapter => true,
        FetchReason::HubUnreachable
        | FetchReason::HubRateLimited
        | FetchReason::HubError
        | FetchReason::Corrupt
        | FetchReason::Disk => false,
    }
}

impl Adapter {
    /// What has to be fetched before it can be loaded.
    pub fn to_fetch(&self) -> Option<&SourceRef> {
        let wish = self.wish.as_ref()?;
        wish.origin.fetch.as_ref().filter(|_| !self.fetch.have && self.registered.is_none())
    }

    /// Why its source may not be used.
    pub fn refused(&self) -> Option<&str> {
        self.wish.as_ref()?.origin.refused.as_deref()
    }

    /// Whether a fetch may begin now.
    pub fn may_fetch(&self, now: Timestamp) -> bool {
        self.wants_loading()
            && self.refused().is_none()
            && self.in_flight.is_none()
            && self.fetch.under_way.is_none()
            && !self.is_held(now)
            && self.fetch.next_try.is_none_or(|next| now >= next)
    }
}

#[cfg(test)]
mod tests;
