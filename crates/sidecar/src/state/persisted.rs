//! What is worth keeping over a restart of the sidecar beside a server that goes on: which process it was, whether it
//! was ready, what was proven there, and over what it died.
//!
//! Everything in it is looked at with suspicion when it comes back: what was ready and verified counts for the same
//! process of the server only, and what is said of an adapter only for the same source.

use super::{CallKind, CrashHold, ServerProcess, SidecarState, TrackedAdapter};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistedState {
    /// The process of the server.
    pub server: Option<PersistedServer>,
    /// Adapters of which there is something to say.
    pub adapters: BTreeMap<AdapterId, PersistedAdapter>,
}

/// One process of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistedServer {
    /// Which.
    pub identity: ServerIdentity,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// Whether it was ready once.
    pub was_ready: bool,
}

/// One adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistedAdapter {
    /// The source that this is about.
    pub source: String,
    /// Whether the process of the server answered with it.
    #[serde(default)]
    pub verified: bool,
    /// The source with which it was once verified here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<String>,
    /// How often the server ended over it since.
    #[serde(default)]
    pub server_crashes: u32,
    /// Why it is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_hold: Option<CrashHold>,
    /// A load or a first use that nobody saw the end of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_call: Option<CallKind>,
    /// What went wrong, where it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ReportedError>,
}

impl PersistedAdapter {
    fn from_adapter(adapter: &TrackedAdapter) -> Option<Self> {
        let wish = adapter.spec.as_ref()?;
        let under_way = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.unconfirmed_call);
        let kept = Self {
            source: wish.source.clone(),
            verified: adapter.verified,
            verified_source: adapter.verified_source.clone(),
            server_crashes: adapter.server_crashes,
            crash_hold: adapter.crash_hold,
            unconfirmed_call: under_way.filter(|kind| *kind != CallKind::Unload),
            last_error: adapter.last_error.clone().filter(|_| adapter.crash_hold.is_some()),
        };
        let says_something = kept.verified_source.is_some()
            || kept.server_crashes > 0
            || kept.crash_hold.is_some()
            || kept.unconfirmed_call.is_some();
        says_something.then_some(kept)
    }
}

impl SidecarState {
    /// What to keep now. What came back and has found no wish yet is kept on.
    pub fn to_persisted(&self) -> PersistedState {
        let server =
            self.process.as_ref().filter(|known| known.dead_engine_until.is_none()).map(|known| PersistedServer {
                identity: known.identity.clone(),
                first_seen: known.first_seen,
                was_ready: known.was_ready,
            });
        let mut adapters = self.restored.clone();
        adapters.extend(
            self.adapters
                .iter()
                .filter_map(|(id, adapter)| Some((id.clone(), PersistedAdapter::from_adapter(adapter)?))),
        );
        PersistedState { server, adapters }
    }

    /// Takes back what an earlier run kept, before anything else is known. Of another endpoint nothing is taken.
    pub fn restore(&mut self, kept: PersistedState) {
        let Some(server) = kept.server.filter(|server| server.identity.endpoint == self.endpoint) else { return };
        let PersistedServer { identity, first_seen: since, was_ready } = server;
        self.process = Some(ServerProcess { identity, first_seen: since, was_ready, dead_engine_until: None });
        self.restored = kept.adapters;
    }

    /// Gives the adapters that the first file names what was kept of them; the rest is forgotten.
    pub(super) fn restore_adapters(&mut self) {
        for (id, kept) in std::mem::take(&mut self.restored) {
            let adapter = self.adapters.get_mut(&id);
            let about =
                |adapter: &&mut TrackedAdapter| adapter.spec.as_ref().is_some_and(|wish| wish.source == kept.source);
            if let Some(adapter) = adapter.filter(about) {
                adapter.restore(kept);
            }
        }
    }

    /// The process that what was kept speaks of has ended.
    pub(super) fn invalidate_restored(&mut self) {
        for kept in self.restored.values_mut() {
            kept.verified = false;
        }
    }
}

impl TrackedAdapter {
    pub(super) fn restore(&mut self, kept: PersistedAdapter) {
        // A call that nobody saw the end of is in doubt: the list of models tells, or another process of the server.
        let PersistedAdapter {
            source: _,
            verified,
            verified_source: proven,
            server_crashes: deaths,
            crash_hold: hold,
            unconfirmed_call: under_way,
            last_error,
        } = kept;
        self.verified = verified;
        self.verified_source = proven;
        self.server_crashes = deaths;
        self.crash_hold = hold;
        self.unconfirmed_call = under_way;
        self.needs_person = hold == Some(CrashHold::Quarantine);
        self.attempts = u32::from(hold.is_some());
        self.last_error = last_error;
    }
}

#[cfg(test)]
mod tests;
