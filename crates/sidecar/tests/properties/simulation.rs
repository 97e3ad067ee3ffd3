//! A simulation of the sidecar, its vLLM server and everything that disturbs them, in one thread and without a clock.

mod files;
mod invariants;
mod server;
mod steps;

pub(crate) use steps::{
    EntryMembership, PersistedCopy, SimulationConfig, SimulationStep, config_strategy, directives_strategy,
    entries_strategy, step_strategy,
};

use files::BAD_FILES;
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, names::AdapterId, sidecar_status::ServerIdentity};
use rollora_sidecar::{
    decide::{AdapterCall, decide},
    last_good::{ConfigTexts, LastGoodConfig},
    state::{CallKind, CrashHold, PendingPoll, PersistedState, PollError, ServerObservation, SidecarState},
    status::status,
};
use server::SimulatedProcess;
use std::{collections::BTreeMap, time::Duration};
use steps::CallDelivery;
use tokio::time::Instant;

/// The ids of all entries; the last one is the name of a base model.
pub(crate) const IDS: [&str; 5] = ["a", "b", "c", "d", "base"];
const POD: &str = "pod";

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

/// Returns the source of an entry: a path, except for `d`, which comes from the hub.
fn source(name: &str, other: bool) -> String {
    match (name, other) {
        ("d", false) => "org/d".to_owned(),
        (_, false) => format!("/adapters/{name}"),
        (_, true) => format!("/other/{name}"),
    }
}

struct SimulatedCall {
    action: AdapterCall,
    epoch: u64,
    process: Option<u32>,
    started_at: Timestamp,
}

/// A failed call that must not be repeated immediately, because no event since then could change its result.
struct FailedCall {
    kind: CallKind,
    at: Timestamp,
    /// The server process that answered it.
    process: Option<ServerIdentity>,
}

type PollResult = Result<ServerObservation, PollError>;

pub(crate) struct Simulation {
    state: SidecarState,
    now: Timestamp,
    server: Option<SimulatedProcess>,
    processes_started: u32,
    calls: Vec<SimulatedCall>,
    poll: Option<(PendingPoll, Option<PollResult>)>,
    desired: Option<DesiredAdapters>,
    last_good: LastGoodConfig,
    /// The texts that were read last.
    texts: Option<ConfigTexts>,
    missing_directives_deadline: Option<Instant>,
    /// The same moment as simulated time and as instant of [`LastGoodConfig`].
    clock_origin: (Timestamp, Instant),
    config: SimulationConfig,
    /// The persisted state, and the version before its last change.
    persisted: [PersistedState; 2],
    orphaned_calls: Vec<SimulatedCall>,
    failed: BTreeMap<AdapterId, FailedCall>,
    /// The last process that was ready.
    was_ready: Option<ServerIdentity>,
    crashing: Vec<&'static str>,
    broken: Vec<&'static str>,
    crash_counts: BTreeMap<&'static str, u32>,
    /// No earlier process may count as ready, because its connection was observed to close.
    min_ready_process: u32,
    /// The adapter table of the server when the disturbances ended.
    table_when_quiet: BTreeMap<AdapterId, String>,
}

impl Simulation {
    pub(crate) fn new(config: SimulationConfig, crashing: &[&'static str], broken: &[&'static str]) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut simulation = Self {
            state: SidecarState::new("http://server", config.policy),
            now,
            server: None,
            processes_started: 0,
            calls: Vec::new(),
            poll: None,
            desired: None,
            last_good: LastGoodConfig::default(),
            texts: None,
            missing_directives_deadline: None,
            clock_origin: (now, Instant::now()),
            config,
            persisted: [PersistedState::default(), PersistedState::default()],
            orphaned_calls: Vec::new(),
            failed: BTreeMap::new(),
            was_ready: None,
            crashing: crashing.to_vec(),
            broken: broken.to_vec(),
            crash_counts: BTreeMap::new(),
            min_ready_process: 0,
            table_when_quiet: BTreeMap::new(),
        };
        simulation.start_server();
        simulation.reconcile();
        simulation
    }

    pub(crate) fn apply(&mut self, step: &SimulationStep) {
        match step {
            SimulationStep::SetDesired(entries, directives) => self.set_desired(entries, directives.as_ref()),
            SimulationStep::Wait(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            SimulationStep::FinishCall(index, delivery) if !self.calls.is_empty() => {
                let call = self.calls.remove(index.index(self.calls.len()));
                self.finish_call(&call, *delivery);
            }
            SimulationStep::ObservePoll => self.observe_poll(CallDelivery::Answered),
            SimulationStep::FinishPoll(delivery) => self.finish_poll(*delivery),
            SimulationStep::StopServer => self.server = None,
            SimulationStep::StartServer if self.server.is_none() => self.start_server(),
            SimulationStep::CloseConnection => self.close_connection(),
            SimulationStep::UseAdapter(index) => {
                let (now, id) = (self.now, id(IDS[*index]));
                if let Some(server) = self.server.as_mut().filter(|server| server.adapters.contains_key(&id)) {
                    server.last_used.insert(id, now);
                }
            }
            SimulationStep::ExternalLoad(index) => {
                if let Some(server) = self.server.as_mut().filter(|_| IDS[*index] != "base") {
                    server.adapters.entry(id(IDS[*index])).or_insert_with(|| source(IDS[*index], false));
                }
            }
            SimulationStep::ExternalUnload(index) => {
                if let Some(server) = &mut self.server {
                    server.adapters.remove(&id(IDS[*index]));
                    server.confirmed_loads.remove(&id(IDS[*index]));
                }
            }
            SimulationStep::WriteBadFile(which) => self.write_bad_file(*which),
            SimulationStep::RestartSidecar(copy) => self.restart_sidecar(*copy),
            SimulationStep::ApplyOrphanedCall(index) if !self.orphaned_calls.is_empty() => {
                let call = self.orphaned_calls.remove(index.index(self.orphaned_calls.len()));
                let process = self.server.as_ref().map(|server| server.number);
                if process.is_some() && process == call.process {
                    drop(self.execute(&call.action));
                }
            }
            SimulationStep::FinishCall(..) | SimulationStep::StartServer | SimulationStep::ApplyOrphanedCall(_) => {}
        }
        if !matches!(
            step,
            SimulationStep::Wait(_)
                | SimulationStep::FinishCall(..)
                | SimulationStep::ObservePoll
                | SimulationStep::FinishPoll(_)
                | SimulationStep::UseAdapter(_)
        ) {
            self.failed.clear();
        }
        self.reconcile();
    }

    /// Ends the disturbances: from now on every call is answered, and a server that ends is restarted.
    pub(crate) fn quiesce(&mut self) {
        // Let the wait for missing directives end, so that the active content does not change later.
        if let Some(end) = self.missing_directives_deadline {
            self.now += end.duration_since(self.instant());
            self.reconcile();
        }
        if self.server.is_none() {
            self.start_server();
        }
        for call in std::mem::take(&mut self.calls) {
            self.finish_call(&call, CallDelivery::Answered);
        }
        self.orphaned_calls.clear();
        self.failed.clear();
        self.finish_poll(CallDelivery::Answered);
        self.close_connection();
        if self.server.is_none() {
            self.start_server();
        }
        self.table_when_quiet = self.server.as_ref().map(|server| server.adapters.clone()).unwrap_or_default();
        self.reconcile();
    }

    /// Runs some seconds without disturbances.
    pub(crate) fn run_quiet(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.reconcile();
        for _ in 0..4 {
            self.finish_poll(CallDelivery::Answered);
            for call in std::mem::take(&mut self.calls) {
                self.finish_call(&call, CallDelivery::Answered);
            }
            self.reconcile();
        }
        if self.server.is_none() {
            self.start_server();
            self.table_when_quiet.clear();
        }
    }

    pub(crate) fn held_adapters(&self) -> Vec<(&'static str, CrashHold)> {
        IDS.iter().filter_map(|name| Some((*name, self.state.adapters.get(&id(name))?.crash_hold?))).collect()
    }

    pub(crate) fn crash_counts(&self) -> &BTreeMap<&'static str, u32> {
        &self.crash_counts
    }

    /// The simulated time as an instant, for [`LastGoodConfig`].
    fn instant(&self) -> Instant {
        self.clock_origin.1 + self.now.duration_since(self.clock_origin.0).unsigned_abs()
    }

    /// Restarts the sidecar. Calls in flight may still take effect.
    fn restart_sidecar(&mut self, copy: PersistedCopy) {
        let calls = std::mem::take(&mut self.calls);
        self.orphaned_calls.extend(calls);
        self.poll = None;
        self.state = SidecarState::new("http://server", self.config.policy);
        if copy != PersistedCopy::Latest {
            self.was_ready = None;
        }
        let [latest, previous] = &self.persisted;
        let persisted = match copy {
            PersistedCopy::Latest => Some(latest),
            PersistedCopy::Previous => Some(previous),
            PersistedCopy::Missing => None,
        };
        if let Some(persisted) = persisted {
            // Through the serialized text, as the program does it.
            self.state.restore(serde_json::from_str(&serde_json::to_string(persisted).unwrap()).unwrap());
        }
        let desired = self.last_good.desired().borrow().clone();
        if let Some(desired) = desired {
            self.state.set_desired(&desired, POD, self.now);
        }
        self.state.file_error.clone_from(&self.last_good.error().borrow());
    }

    /// Does what the loop does after every event.
    fn reconcile(&mut self) {
        if self.missing_directives_deadline.is_some_and(|end| self.instant() >= end)
            && let Some(texts) = self.texts.clone()
        {
            self.apply_texts(texts);
        }
        self.assert_unloads_visible();
        for action in decide(&self.state, self.now) {
            self.assert_allowed(&action);
            self.state.begin_call(&action, self.now);
            let process = self.server.as_ref().map(|server| server.number);
            self.calls.push(SimulatedCall { action, epoch: self.state.epoch(), process, started_at: self.now });
        }
        if let Some(request) = self.state.due_poll(self.now) {
            assert!(self.poll.is_none(), "two concurrent polls");
            self.poll = Some((self.state.begin_poll(request, self.now), None));
        }
        let status = status(&self.state, self.now);
        if status.readiness.ready {
            self.state.latch_ready();
        }
        let persisted = self.state.to_persisted();
        if self.persisted[0] != persisted {
            self.persisted.swap(0, 1);
            self.persisted[0] = persisted;
        }
        self.assert_readiness_latched(&status);
        self.assert_status_accurate(&status);
    }

    /// The server process that the state refers to.
    fn known_identity(&self) -> Option<ServerIdentity> {
        self.state.process.as_ref().map(|process| process.identity.clone())
    }

    /// Whether `server` is the process that the state refers to.
    fn is_known(&self, server: &SimulatedProcess) -> bool {
        self.state.process.as_ref().is_some_and(|process| process.identity.start == server.number.to_string())
    }
}
