//! Fetches of hub adapters into the folder that vLLM reads.
//!
//! Fetches do not depend on the server process: a fetch continues while vLLM restarts, and so does the retry delay
//! after a failed one.

use super::{SidecarState, TrackedAdapter};
use crate::backoff::Backoff;
use jiff::Timestamp;
use rollora_adapter_source::{FetchError, FetchProgress, FetchReason, FetchedAdapter, SourceRef};
use rollora_api::{names::AdapterId, sidecar_status::ReportedError};
use std::time::Duration;

/// The first retry delay of an error that only a person can resolve.
const MIN_BACKOFF_NEEDS_PERSON: Duration = Duration::from_mins(1);

/// State of the fetches of one adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FetchState {
    /// The fetch in flight, if any.
    pub active: Option<ActiveFetch>,
    /// Whether the adapter is in the folder, as far as is known.
    pub fetched: bool,
    /// The commit that was fetched, if the hub reported one.
    pub commit: Option<String>,
    /// The progress of the last fetch.
    pub progress: FetchProgress,
    /// The number of failures in a row since the entry changed.
    pub attempts: u32,
    /// No fetch is started before this time.
    pub next_try: Option<Timestamp>,
    /// The error of the last fetch, until one succeeds.
    pub last_error: Option<ReportedError>,
    /// Whether only a person can resolve `last_error`.
    pub needs_person: bool,
}

/// A fetch in flight of one adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveFetch {
    /// Distinguishes it from other fetches of the adapter.
    pub fetch_id: u64,
    /// When the fetch was started.
    pub started_at: Timestamp,
}

impl SidecarState {
    /// Records the start of a fetch of `id`, and returns its fetch id.
    pub fn begin_fetch(&mut self, id: &AdapterId, now: Timestamp) -> u64 {
        let fetch_id = self.next_sequence();
        if let Some(adapter) = self.adapters.get_mut(id) {
            adapter.fetch.active = Some(ActiveFetch { fetch_id, started_at: now });
            adapter.fetch.progress = FetchProgress::default();
        }
        fetch_id
    }

    /// Returns whether that fetch is still wanted.
    pub fn is_current_fetch(&self, id: &AdapterId, fetch_id: u64) -> bool {
        self.active_fetch(id).is_some_and(|active| active.fetch_id == fetch_id)
    }

    /// Records the progress of a fetch, if it is still wanted.
    pub fn set_fetch_progress(&mut self, id: &AdapterId, fetch_id: u64, progress: FetchProgress) {
        if self.is_current_fetch(id, fetch_id)
            && let Some(adapter) = self.adapters.get_mut(id)
        {
            adapter.fetch.progress = progress;
        }
    }

    /// Records the result of a fetch, if it is still wanted; `jitter` (0 to 1) spreads the next attempt.
    pub fn finish_fetch(
        &mut self,
        id: &AdapterId,
        fetch_id: u64,
        result: Result<FetchedAdapter, FetchError>,
        jitter: f64,
        now: Timestamp,
    ) {
        if !self.is_current_fetch(id, fetch_id) {
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        match result {
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
    /// Clears the failures, because what caused them has changed.
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
        let delay = backoff.delay(self.attempts, jitter);
        self.next_try = Some(now + error.retry_after.map_or(delay, |retry_after| delay.max(retry_after)));
    }
}

/// Whether a retry cannot succeed before a person changes something.
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
    /// Returns the hub source that must be fetched before a load; `None` if no fetch is needed.
    pub fn source_to_fetch(&self) -> Option<&SourceRef> {
        let spec = self.spec.as_ref()?;
        spec.resolved.fetch_source.as_ref().filter(|_| !self.fetch.fetched && self.registered.is_none())
    }

    /// Returns why the source is not allowed; `None` if it is.
    pub fn source_refusal(&self) -> Option<&str> {
        self.spec.as_ref()?.resolved.refusal.as_deref()
    }

    /// Returns whether a fetch may start now.
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
