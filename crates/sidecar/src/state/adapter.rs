//! What is known of one adapter on the server.

use super::FetchState;
use crate::spec::{AdapterGoal, AdapterSpec};
use jiff::Timestamp;
use rollora_api::sidecar_status::ReportedError;
use serde::{Deserialize, Serialize};

/// One adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrackedAdapter {
    /// What the file and the operator want; none where they do not name it.
    pub spec: Option<AdapterSpec>,
    /// The `root` that the server has registered it from.
    pub registered: Option<String>,
    /// Whether a completion with it was answered by this process of the server.
    pub verified: bool,
    /// The source with which it was once verified here, by whichever process.
    pub verified_source: Option<String>,
    /// Probes in a row that ended without any answer.
    pub inconclusive_probes: u32,
    /// Failures in a row since the entry or the server changed.
    pub attempts: u32,
    /// Nothing is tried before.
    pub next_try: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<ReportedError>,
    /// Whether that needs a person.
    pub needs_person: bool,
    /// How it is brought, where it comes from a hub.
    pub fetch: FetchState,
    /// The call under way.
    pub in_flight: Option<InFlightCall>,
    /// The call that ended without a clear answer.
    pub unconfirmed_call: Option<CallKind>,
    /// That call was answered, and by its answer the list of models has to change: one that does not is a failure.
    pub claimed_by_server: bool,
    /// How often the server ended while loading it or at its first use, since it was last verified.
    pub server_crashes: u32,
    /// Why it is not tried again after such an end.
    pub crash_hold: Option<CrashHold>,
    /// Since when it is to be unloaded.
    pub unwanted_since: Option<Timestamp>,
    /// The event that last changed what is known of its registration.
    pub(super) registration_sequence: u64,
}

/// What is asked of the server about an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    /// To load it.
    Load,
    /// To complete one token with it.
    Probe,
    /// To unload it.
    Unload,
}

impl CallKind {
    /// The same word in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Probe => "probe",
            Self::Unload => "unload",
        }
    }
}

/// A call under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightCall {
    /// What was asked.
    pub kind: CallKind,
    /// The source that a load was given.
    pub source: String,
    /// Since when.
    pub started_at: Timestamp,
    /// The epoch in which it was made.
    pub(super) epoch: u64,
}

/// Why an adapter over which the server died is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CrashHold {
    /// Until then.
    Until(Timestamp),
    /// Until the operator says something else about it.
    AwaitOperator,
    /// Until its entry is taken out of the list, or replaced.
    Quarantine,
}

impl TrackedAdapter {
    /// What has to become true of it.
    pub fn goal(&self) -> AdapterGoal {
        self.spec.as_ref().map_or(AdapterGoal::Ignore, AdapterSpec::goal)
    }

    /// Whether it is to be loaded and proven.
    pub fn wants_loading(&self) -> bool {
        matches!(self.goal(), AdapterGoal::Resident | AdapterGoal::UnloadHeld { reload: true })
    }

    /// Whether it is registered from another source than the file names.
    pub fn source_changed(&self) -> bool {
        match (&self.registered, &self.spec) {
            (Some(root), Some(wish)) => !wish.matches_root(root),
            _ => false,
        }
    }

    /// Whether it was once verified here with the source that the file names.
    pub fn was_verified(&self) -> bool {
        match (&self.verified_source, &self.spec) {
            (Some(proven), Some(wish)) => wish.matches_root(proven),
            _ => false,
        }
    }

    /// Whether something may be asked about it now: nothing is under way or in doubt, and the last failure is long ago.
    pub fn may_call(&self, now: Timestamp) -> bool {
        self.in_flight.is_none() && self.unconfirmed_call.is_none() && self.next_try.is_none_or(|next| now >= next)
    }

    /// Whether an unload of it may still be done: it was asked for, and no list of models that is newer has arrived.
    pub fn may_be_unloaded(&self) -> bool {
        let asked = self.in_flight.as_ref().map(|call| call.kind).or(self.unconfirmed_call);
        asked == Some(CallKind::Unload)
    }

    /// Whether it must not be loaded or used, because the server died over it.
    pub fn is_crash_held(&self, now: Timestamp) -> bool {
        match self.crash_hold {
            None => false,
            Some(CrashHold::Until(until)) => now < until,
            Some(CrashHold::AwaitOperator | CrashHold::Quarantine) => true,
        }
    }

    /// The failures so far are about something that has changed.
    pub(super) fn reset_failures(&mut self) {
        self.attempts = 0;
        self.inconclusive_probes = 0;
        self.next_try = None;
        self.last_error = None;
        self.needs_person = false;
    }

    /// The server's process has ended, or seems to have: it holds nothing of ours any more. An unload that is under way
    /// may still be done, by that process or by the next one.
    pub(super) fn clear_process_state(&mut self) {
        self.registered = None;
        self.in_flight.take_if(|call| call.kind != CallKind::Unload);
        self.unconfirmed_call = None;
        self.claimed_by_server = false;
    }
}
