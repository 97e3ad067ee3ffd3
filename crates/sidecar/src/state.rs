//! The state of a sidecar: what is desired, what its server was last observed to hold, and the history of calls.
//!
//! Pure: events are method calls with the time as an argument (a new file, the end of a call, the result of a poll),
//! and [`decide`](crate::decide) and [`status`](crate::status) read the state.
//!
//! Invariants:
//! - All observations of the server belong to one server process. When that process is found to have ended, all
//!   registrations are dropped, and results of its calls (an older *epoch*) are ignored.
//! - A call without a clear answer is *unconfirmed*: no further call about its adapter is made before a model list that
//!   was requested later has arrived.

mod adapter;
mod calls;
mod desired;
mod fetch;
mod persisted;
mod poll;
mod server;
mod usage;

pub use adapter::{CallKind, CrashHold, InFlightCall, TrackedAdapter};
pub use calls::CallOutcome;
pub use fetch::{ActiveFetch, FetchState};
pub use persisted::{PersistedAdapter, PersistedServer, PersistedState};
pub use poll::{PendingPoll, PollError, PollRequest, PollStep, ServerObservation};
pub use server::{ServerHealth, ServerProcess};

use crate::{config::SidecarPolicy, source::AdapterSourcePolicy};
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ConfigStatus, ReportedError},
};
use std::collections::BTreeMap;

/// State of one sidecar: its server, its adapters, and the desired state.
#[derive(Debug, Clone)]
pub struct SidecarState {
    /// Limits and delays that decisions depend on.
    pub policy: SidecarPolicy,
    /// Which sources are allowed, and which are fetched.
    pub source_policy: AdapterSourcePolicy,
    /// The base URL of the server.
    pub endpoint: String,
    /// The active adapters file; `None` before the first valid one.
    pub config: Option<ConfigStatus>,
    /// Why newer content of the file is not active; `None` if it is.
    pub file_error: Option<String>,
    /// Whether the server answers.
    pub health: ServerHealth,
    /// The server process that was observed last, also while it cannot be reached; `None` before the first.
    pub process: Option<ServerProcess>,
    /// Base models that the server lists. They are never loaded or unloaded.
    pub base_models: Vec<String>,
    /// The server's `max_loras` by its metrics; `None` if they do not report it.
    pub max_loras: Option<u32>,
    /// The last error of vLLM that concerns the server as a whole.
    pub problem: Option<ReportedError>,
    /// The hub adapter whose load timed out, until another answer proves that the engine no longer downloads it.
    pub hung_hub_load: Option<AdapterId>,
    /// Every id that the file names or that the server has registered.
    pub adapters: BTreeMap<AdapterId, TrackedAdapter>,
    /// Persisted adapters of an earlier run, until the first file names them.
    restored: BTreeMap<AdapterId, PersistedAdapter>,
    /// Incremented whenever the server process is found to have ended.
    epoch: u64,
    /// Counts events, to order requests and observations.
    sequence: u64,
    poll_schedule: poll::PollSchedule,
    usage: usage::AdapterUsageTracker,
}

impl SidecarState {
    /// Creates the initial state, before the first poll of the server at `endpoint`.
    pub fn new(endpoint: impl Into<String>, policy: SidecarPolicy) -> Self {
        Self {
            policy,
            source_policy: AdapterSourcePolicy::default(),
            endpoint: endpoint.into(),
            config: None,
            file_error: None,
            health: ServerHealth::Down { problem: None },
            process: None,
            base_models: Vec::new(),
            max_loras: None,
            problem: None,
            hung_hub_load: None,
            adapters: BTreeMap::new(),
            restored: BTreeMap::new(),
            epoch: 0,
            sequence: 0,
            poll_schedule: poll::PollSchedule::default(),
            usage: usage::AdapterUsageTracker::default(),
        }
    }

    /// Returns the current epoch, which identifies the server process of calls that start now.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns whether `id` is the name of a base model of the server.
    pub fn is_base_model(&self, id: &AdapterId) -> bool {
        self.base_models.iter().any(|base| base == id.as_str())
    }

    /// Returns the calls in flight, each with its adapter.
    pub fn in_flight(&self) -> impl Iterator<Item = (&AdapterId, &TrackedAdapter, &InFlightCall)> {
        self.adapters.iter().filter_map(|(id, adapter)| Some((id, adapter, adapter.in_flight.as_ref()?)))
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Drops ids that neither the file names nor the server has registered.
    fn prune(&mut self) {
        self.adapters
            .retain(|_, adapter| adapter.spec.is_some() || adapter.registered.is_some() || adapter.in_flight.is_some());
    }
}

#[cfg(test)]
mod tests;
