//! The state that survives a restart of the sidecar while the server keeps running: the identity of the server process,
//! whether it was ready, which adapters were verified, and which may have crashed it.
//!
//! Restored state is not trusted blindly: readiness and verification count only for the same server process, and the
//! state of an adapter only for the same source.

use super::{CallKind, CrashHold, ServerProcess, SidecarState, TrackedAdapter};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state that survives a restart of the sidecar.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistedState {
    /// The server process; `None` if none was known, or if its engine was dead.
    pub server: Option<PersistedServer>,
    /// The adapters that were verified, held, or in flight at a crash.
    pub adapters: BTreeMap<AdapterId, PersistedAdapter>,
}

/// The persisted state of one server process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistedServer {
    /// Endpoint and start time of the process.
    pub identity: ServerIdentity,
    /// When the process was first observed.
    pub first_seen: Timestamp,
    /// Whether the process was ever ready.
    pub was_ready: bool,
}

/// The persisted state of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistedAdapter {
    /// The source in the file; the rest is valid only for it.
    pub source: String,
    /// Whether the server process answered a completion with it.
    #[serde(default)]
    pub verified: bool,
    /// The source with which it was last verified here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_source: Option<String>,
    /// How often the server ended during a load or first use of it since then.
    #[serde(default)]
    pub server_crashes: u32,
    /// Why it is not tried again after a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_hold: Option<CrashHold>,
    /// A load or probe whose end was not observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_call: Option<CallKind>,
    /// The error that led to `crash_hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ReportedError>,
}

impl PersistedAdapter {
    fn from_adapter(adapter: &TrackedAdapter) -> Option<Self> {
        let spec = adapter.spec.as_ref()?;
        let unconfirmed_call = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.unconfirmed_call);
        let persisted = Self {
            source: spec.source.clone(),
            verified: adapter.verified,
            verified_source: adapter.verified_source.clone(),
            server_crashes: adapter.server_crashes,
            crash_hold: adapter.crash_hold,
            unconfirmed_call: unconfirmed_call.filter(|kind| *kind != CallKind::Unload),
            last_error: adapter.last_error.clone().filter(|_| adapter.crash_hold.is_some()),
        };
        let is_relevant = persisted.verified_source.is_some()
            || persisted.server_crashes > 0
            || persisted.crash_hold.is_some()
            || persisted.unconfirmed_call.is_some();
        is_relevant.then_some(persisted)
    }
}

impl SidecarState {
    /// Returns the state to persist now. Restored adapters stay in it until the first file was applied.
    pub fn to_persisted(&self) -> PersistedState {
        let server = self.process.as_ref().filter(|process| process.dead_engine_until.is_none()).map(|process| {
            PersistedServer {
                identity: process.identity.clone(),
                first_seen: process.first_seen,
                was_ready: process.was_ready,
            }
        });
        let mut adapters = self.restored.clone();
        adapters.extend(
            self.adapters
                .iter()
                .filter_map(|(id, adapter)| Some((id.clone(), PersistedAdapter::from_adapter(adapter)?))),
        );
        PersistedState { server, adapters }
    }

    /// Restores the state of an earlier run, before anything else is known. State of another endpoint is dropped.
    pub fn restore(&mut self, persisted: PersistedState) {
        let Some(server) = persisted.server.filter(|server| server.identity.endpoint == self.endpoint) else { return };
        let PersistedServer { identity, first_seen, was_ready } = server;
        self.process = Some(ServerProcess { identity, first_seen, was_ready, dead_engine_until: None });
        self.restored = persisted.adapters;
    }

    /// Restores the adapters that the first file names from the same source, and drops the rest.
    pub(super) fn restore_adapters(&mut self) {
        for (id, persisted) in std::mem::take(&mut self.restored) {
            let adapter = self.adapters.get_mut(&id);
            let same_source = |adapter: &&mut TrackedAdapter| {
                adapter.spec.as_ref().is_some_and(|spec| spec.source == persisted.source)
            };
            if let Some(adapter) = adapter.filter(same_source) {
                adapter.restore(persisted);
            }
        }
    }

    /// Drops the verification in the restored state, because its server process has ended.
    pub(super) fn invalidate_restored(&mut self) {
        for persisted in self.restored.values_mut() {
            persisted.verified = false;
        }
    }
}

impl TrackedAdapter {
    pub(super) fn restore(&mut self, persisted: PersistedAdapter) {
        // A call whose end was not observed is unconfirmed: the model list decides, or a new server process.
        let PersistedAdapter {
            source: _,
            verified,
            verified_source,
            server_crashes,
            crash_hold,
            unconfirmed_call,
            last_error,
        } = persisted;
        self.verified = verified;
        self.verified_source = verified_source;
        self.server_crashes = server_crashes;
        self.crash_hold = crash_hold;
        self.unconfirmed_call = unconfirmed_call;
        self.needs_person = crash_hold == Some(CrashHold::Quarantine);
        self.attempts = u32::from(crash_hold.is_some());
        self.last_error = last_error;
    }
}

#[cfg(test)]
mod tests;
