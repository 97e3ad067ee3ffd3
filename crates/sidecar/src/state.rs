//! What a sidecar knows: what is wanted, what its server was last seen to hold, and how it went so far.
//!
//! Pure: events come in as method calls with the time as an argument (a new file, the end of a call, what a look at
//! the server showed), and [`decide`](crate::decide) and [`status`](crate::status) read the result.
//!
//! Invariants:
//! - What is known of the server belongs to one process of it. When that process is seen to have ended, everything
//!   registered is forgotten, and answers to calls from before (an older *epoch*) are ignored.
//! - A call without a clear answer leaves a *doubt*, and nothing more is done about its adapter before a list of
//!   models that was asked for later has arrived.

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

/// Everything a sidecar knows.
#[derive(Debug, Clone)]
pub struct SidecarState {
    /// The numbers that decisions depend on.
    pub policy: SidecarPolicy,
    /// What is done about sources.
    pub source_policy: AdapterSourcePolicy,
    /// The server's base URL.
    pub endpoint: String,
    /// The file in force; none before the first good one.
    pub config: Option<ConfigStatus>,
    /// Why newer content of the file is not in force.
    pub file_error: Option<String>,
    /// How the server is.
    pub health: ServerHealth,
    /// The process that was last seen, also while it cannot be reached.
    pub process: Option<ServerProcess>,
    /// Base models that the server names. They are never touched.
    pub base_models: Vec<String>,
    /// What the server's metrics say of its capacity.
    pub max_loras: Option<u32>,
    /// What vLLM last said against the server as a whole.
    pub problem: Option<ReportedError>,
    /// The adapter that the engine was downloading when its load was given up, as long as nothing has shown that the
    /// engine answers again.
    pub hung_hub_load: Option<AdapterId>,
    /// Every id that is wanted, unwanted or registered.
    pub adapters: BTreeMap<AdapterId, TrackedAdapter>,
    /// What an earlier run kept of adapters, until the first file names them.
    restored: BTreeMap<AdapterId, PersistedAdapter>,
    /// Rises whenever the server's process is seen to have ended.
    epoch: u64,
    /// Counts events, to tell what was asked before from what was asked after.
    sequence: u64,
    poll_schedule: poll::PollSchedule,
    usage: usage::AdapterUsageTracker,
}

impl SidecarState {
    /// Knows nothing yet of the server at `endpoint`.
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

    /// The present epoch: the number that calls carry which are started now.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether `id` is the name of a base model.
    pub fn is_base_model(&self, id: &AdapterId) -> bool {
        self.base_models.iter().any(|base| base == id.as_str())
    }

    /// Calls about adapters that are under way.
    pub fn in_flight(&self) -> impl Iterator<Item = (&AdapterId, &TrackedAdapter, &InFlightCall)> {
        self.adapters.iter().filter_map(|(id, adapter)| Some((id, adapter, adapter.in_flight.as_ref()?)))
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Forgets ids that nobody wants, unwants or holds.
    fn prune(&mut self) {
        self.adapters
            .retain(|_, adapter| adapter.spec.is_some() || adapter.registered.is_some() || adapter.in_flight.is_some());
    }
}

#[cfg(test)]
mod tests;
