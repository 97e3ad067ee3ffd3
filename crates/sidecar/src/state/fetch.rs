//! Bringing what a hub has into the folder that vLLM reads.
//!
//! Nothing of it belongs to a process of the server: a fetch goes on while vLLM is started again, and so does the wait
//! after one that failed.

use super::{SidecarState, TrackedAdapter};
use crate::backoff::Backoff;
use jiff::Timestamp;
use rollora_adapter_source::{FetchError, FetchProgress, FetchReason, FetchedAdapter, SourceRef};
use rollora_api::{names::AdapterId, sidecar_status::ReportedError};
use std::time::Duration;

/// What only a person can change is asked for again this slowly at first.
const MIN_BACKOFF_NEEDS_PERSON: Duration = Duration::from_mins(1);

/// The fetches of one adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FetchState {
    /// The one under way.
    pub active: Option<ActiveFetch>,
    /// Whether it is there, as far as is known.
    pub fetched: bool,
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
pub struct ActiveFetch {
    /// Tells it from others of the same adapter.
    pub fetch_id: u64,
    /// Since when.
    pub started_at: Timestamp,
}

impl SidecarState {
    /// A fetch of `id` begins; the number that tells it from others.
    pub fn begin_fetch(&mut self, id: &AdapterId, now: Timestamp) -> u64 {
        let number = self.next_sequence();
        if let Some(adapter) = self.adapters.get_mut(id) {
            adapter.fetch.active = Some(ActiveFetch { fetch_id: number, started_at: now });
            adapter.fetch.progress = FetchProgress::default();
        }
        number
    }

    /// Whether somebody still wants that fetch.
    pub fn is_current_fetch(&self, id: &AdapterId, number: u64) -> bool {
        self.active_fetch(id).is_some_and(|under_way| under_way.fetch_id == number)
    }

    /// How far it is.
    pub fn set_fetch_progress(&mut self, id: &AdapterId, number: u64, progress: FetchProgress) {
        if self.is_current_fetch(id, number)
            && let Some(adapter) = self.adapters.get_mut(id)
        {
            adapter.fetch.progress = progress;
        }
    }

    /// It has ended; `jitter` from 0 to 1 spreads the next attempt.
    pub fn finish_fetch(
        &mut self,
        id: &AdapterId,
        number: u64,
        ended: Result<FetchedAdapter, FetchError>,
        jitter: f64,
        now: Timestamp,
    ) {
        if !self.is_current_fetch(id, number) {
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        match ended {
            Ok(fetched) => {
                let progress = adapter.fetch.progress;
                adapter.fetch = FetchState { fetched: true, commit: fetched.commit, progress, ..FetchState::default() };
            }
            Err(error) => adapter.fetch.record_failure(&error, backoff, jitter, now),
        }
    }

    fn active_fetch(&self, id: &AdapterId) -> Option<ActiveFetch> {
        self.adapters.get(id).and_then(|adapter| adapter.fetch.active)
    }
}

impl FetchState {
    /// The failures so far are about something that has changed.
    pub(super) fn reset_failures(&mut self) {
        self.attempts = 0;
        self.next_try = None;
        self.last_error = None;
        self.needs_person = false;
    }

    fn record_failure(&mut self, error: &FetchError, backoff: Backoff, jitter: f64, now: Timestamp) {
        self.active = None;
        self.attempts += 1;
        self.needs_person = needs_person(error.reason);
        self.last_error =
            Some(ReportedError { reason: error.reason.as_str().to_owned(), message: error.message.clone() });
        let backoff = if self.needs_person {
            Backoff { initial: backoff.initial.max(MIN_BACKOFF_NEEDS_PERSON), ..backoff }
        } else {
            backoff
        };
        let wait = backoff.delay(self.attempts, jitter);
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

impl TrackedAdapter {
    /// What has to be fetched before it can be loaded.
    pub fn source_to_fetch(&self) -> Option<&SourceRef> {
        let wish = self.spec.as_ref()?;
        wish.resolved.fetch_source.as_ref().filter(|_| !self.fetch.fetched && self.registered.is_none())
    }

    /// Why its source may not be used.
    pub fn source_refusal(&self) -> Option<&str> {
        self.spec.as_ref()?.resolved.refusal.as_deref()
    }

    /// Whether a fetch may begin now.
    pub fn may_fetch(&self, now: Timestamp) -> bool {
        self.wants_loading()
            && self.source_refusal().is_none()
            && self.in_flight.is_none()
            && self.fetch.active.is_none()
            && !self.is_crash_held(now)
            && self.fetch.next_try.is_none_or(|next| now >= next)
    }
}

#[cfg(test)]
mod tests;
