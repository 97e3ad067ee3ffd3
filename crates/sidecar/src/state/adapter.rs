//! The tracked state of one adapter on the server.

use super::FetchState;
use crate::spec::{AdapterGoal, AdapterSpec};
use jiff::Timestamp;
use rollora_api::sidecar_status::ReportedError;
use serde::{Deserialize, Serialize};

/// The tracked state of one adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrackedAdapter {
    /// What the file and the directives want; `None` if the file does not name it.
    pub spec: Option<AdapterSpec>,
    /// The `root` under which the server has registered it; `None` if it is not registered.
    pub registered: Option<String>,
    /// Whether this server process answered a completion with it.
    pub verified: bool,
    /// The source with which it was last verified here, by this or an earlier server process.
    pub verified_source: Option<String>,
    /// The number of probes in a row without an answer.
    pub inconclusive_probes: u32,
    /// The number of failures in a row since the entry or the server changed.
    pub attempts: u32,
    /// No call is made before this time.
    pub next_try: Option<Timestamp>,
    /// The last error, until it is resolved.
    pub last_error: Option<ReportedError>,
    /// Whether only a person can resolve `last_error`.
    pub needs_person: bool,
    /// The state of its fetches, if it comes from a hub.
    pub fetch: FetchState,
    /// The call in flight, if any.
    pub in_flight: Option<InFlightCall>,
    /// The call that ended without a clear answer; the next model list decides.
    pub unconfirmed_call: Option<CallKind>,
    /// The server answered the unconfirmed call and claims a change that the next model list must confirm. A list that
    /// does not is a failure.
    pub claimed_by_server: bool,
    /// How often the server ended during a load or first use of it, since it was last verified.
    pub server_crashes: u32,
    /// Why it is not tried again after such a crash.
    pub crash_hold: Option<CrashHold>,
    /// Since when its goal is to be absent; `None` if it is not.
    pub unwanted_since: Option<Timestamp>,
    /// The event that last changed `registered`.
    pub(super) registration_sequence: u64,
}

/// The kind of a call about an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    /// Load of an adapter.
    Load,
    /// Completion of one token, which verifies an adapter.
    Probe,
    /// Unload of an adapter.
    Unload,
}

impl CallKind {
    /// Returns the name of the kind in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Probe => "probe",
            Self::Unload => "unload",
        }
    }
}

/// A call in flight about one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightCall {
    /// The kind of the call.
    pub kind: CallKind,
    /// The source of a load; empty for other kinds.
    pub source: String,
    /// When the call was started.
    pub started_at: Timestamp,
    /// The epoch in which the call was started.
    pub(super) epoch: u64,
}

/// Why an adapter is not tried again after a crash of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CrashHold {
    /// Not before this time.
    Until(Timestamp),
    /// Not before the operator admits or rejects the id, or no longer governs it.
    AwaitOperator,
    /// Not before its entry is removed from the list or replaced.
    Quarantine,
}

impl TrackedAdapter {
    /// Returns the state that the adapter must reach.
    pub fn goal(&self) -> AdapterGoal {
        self.spec.as_ref().map_or(AdapterGoal::Ignore, AdapterSpec::goal)
    }

    /// Returns whether the adapter must be loaded and verified.
    pub fn wants_loading(&self) -> bool {
        matches!(self.goal(), AdapterGoal::Resident | AdapterGoal::UnloadHeld { reload: true })
    }

    /// Returns whether the adapter is registered from another source than the file names.
    pub fn source_changed(&self) -> bool {
        match (&self.registered, &self.spec) {
            (Some(root), Some(spec)) => !spec.matches_root(root),
            _ => false,
        }
    }

    /// Returns whether the adapter was ever verified here with the source that the file names.
    pub fn was_verified(&self) -> bool {
        match (&self.verified_source, &self.spec) {
            (Some(source), Some(spec)) => spec.matches_root(source),
            _ => false,
        }
    }

    /// Returns whether a call may be made now: none is in flight or unconfirmed, and the retry delay is over.
    pub fn may_call(&self, now: Timestamp) -> bool {
        self.in_flight.is_none() && self.unconfirmed_call.is_none() && self.next_try.is_none_or(|next| now >= next)
    }

    /// Returns whether an unload may still take effect: it was requested, and no newer model list has arrived.
    pub fn may_be_unloaded(&self) -> bool {
        let kind = self.in_flight.as_ref().map(|call| call.kind).or(self.unconfirmed_call);
        kind == Some(CallKind::Unload)
    }

    /// Returns whether the adapter must not be loaded or probed because of a server crash.
    pub fn is_crash_held(&self, now: Timestamp) -> bool {
        match self.crash_hold {
            None => false,
            Some(CrashHold::Until(until)) => now < until,
            Some(CrashHold::AwaitOperator | CrashHold::Quarantine) => true,
        }
    }

    /// Clears the failures, because what caused them has changed.
    pub(super) fn reset_failures(&mut self) {
        self.attempts = 0;
        self.inconclusive_probes = 0;
        self.next_try = None;
        self.last_error = None;
        self.needs_person = false;
    }

    /// Clears what belongs to a server process that has ended, or seems to have. An unload in flight stays, because
    /// that process or the next one may still execute it.
    pub(super) fn clear_process_state(&mut self) {
        self.registered = None;
        self.in_flight.take_if(|call| call.kind != CallKind::Unload);
        self.unconfirmed_call = None;
        self.claimed_by_server = false;
    }
}
