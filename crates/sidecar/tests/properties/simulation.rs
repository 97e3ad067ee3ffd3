//! A vLLM server, its callers and its enemies, all in one thread, without a clock.

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

/// The last one is the name of a base model.
pub(crate) const IDS: [&str; 5] = ["a", "b", "c", "d", "base"];
const POD: &str = "pod";

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

/// Most are paths; `d` comes from the hub.
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

/// A call that failed, and that nothing has happened since that could make it worth another try at once.
struct FailedCall {
    kind: CallKind,
    at: Timestamp,
    /// The process of the server that it is put down to.
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
    /// What was read last, until when a key that has vanished from it is waited for, and the clock of that.
    texts: Option<ConfigTexts>,
    missing_directives_deadline: Option<Instant>,
    clock_origin: (Timestamp, Instant),
    config: SimulationConfig,
    /// What is kept after the last event, and after the one before.
    persisted: [PersistedState; 2],
    orphaned_calls: Vec<SimulatedCall>,
    failed: BTreeMap<AdapterId, FailedCall>,
    /// The process that was ready once.
    was_ready: Option<ServerIdentity>,
    crashing: Vec<&'static str>,
    broken: Vec<&'static str>,
    crash_counts: BTreeMap<&'static str, u32>,
    /// No process before this one may count as ready: the connection to it was seen to close.
    min_ready_process: u32,
    /// What stood in the table when the world calmed down.
    table_when_quiet: BTreeMap<AdapterId, String>,
}

impl Simulation {
    pub(crate) fn new(manner: SimulationConfig, deadly: &[&'static str], broken: &[&'static str]) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = Self {
            state: SidecarState::new("http://server", manner.policy),
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
            config: manner,
            persisted: [PersistedState::default(), PersistedState::default()],
            orphaned_calls: Vec::new(),
            failed: BTreeMap::new(),
            was_ready: None,
            crashing: deadly.to_vec(),
            broken: broken.to_vec(),
            crash_counts: BTreeMap::new(),
            min_ready_process: 0,
            table_when_quiet: BTreeMap::new(),
        };
        world.start_server();
        world.reconcile();
        world
    }

    pub(crate) fn apply(&mut self, step: &SimulationStep) {
        match step {
            SimulationStep::SetDesired(entries, key) => self.set_desired(entries, key.as_ref()),
            SimulationStep::Wait(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            SimulationStep::FinishCall(index, fate) if !self.calls.is_empty() => {
                let call = self.calls.remove(index.index(self.calls.len()));
                self.finish_call(&call, *fate);
            }
            SimulationStep::ObservePoll => self.observe_poll(CallDelivery::Answered),
            SimulationStep::FinishPoll(fate) => self.finish_poll(*fate),
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
            SimulationStep::RestartSidecar(keeps) => self.restart_sidecar(*keeps),
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

    /// From here on every call is answered, and a server that ends is started again.
    pub(crate) fn quiesce(&mut self) {
        // What is in force from here on stays in force.
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

    /// Some seconds of calm.
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

    /// The present time as whoever reads files has it.
    fn instant(&self) -> Instant {
        self.clock_origin.1 + self.now.duration_since(self.clock_origin.0).unsigned_abs()
    }

    /// The sidecar ends and another one starts. What it had asked for may still be done.
    fn restart_sidecar(&mut self, keeps: PersistedCopy) {
        let calls = std::mem::take(&mut self.calls);
        self.orphaned_calls.extend(calls);
        self.poll = None;
        self.state = SidecarState::new("http://server", self.config.policy);
        if keeps != PersistedCopy::Latest {
            self.was_ready = None;
        }
        let [last, before] = &self.persisted;
        let kept = match keeps {
            PersistedCopy::Latest => Some(last),
            PersistedCopy::Previous => Some(before),
            PersistedCopy::Missing => None,
        };
        if let Some(kept) = kept {
            // As it is written and read.
            self.state.restore(serde_json::from_str(&serde_json::to_string(kept).unwrap()).unwrap());
        }
        let desired = self.last_good.desired().borrow().clone();
        if let Some(desired) = desired {
            self.state.set_desired(&desired, POD, self.now);
        }
        self.state.file_error.clone_from(&self.last_good.error().borrow());
    }

    /// What the loop does between any two events.
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
        if let Some(look) = self.state.due_poll(self.now) {
            assert!(self.poll.is_none(), "two looks at once");
            self.poll = Some((self.state.begin_poll(look, self.now), None));
        }
        let status = status(&self.state, self.now);
        if status.readiness.ready {
            self.state.latch_ready();
        }
        let kept = self.state.to_persisted();
        if self.persisted[0] != kept {
            self.persisted.swap(0, 1);
            self.persisted[0] = kept;
        }
        self.assert_readiness_latched(&status);
        self.assert_status_accurate(&status);
    }

    /// The process that the memory speaks of.
    fn known_identity(&self) -> Option<ServerIdentity> {
        self.state.process.as_ref().map(|known| known.identity.clone())
    }

    /// Whether this is the process that the memory speaks of.
    fn is_known(&self, server: &SimulatedProcess) -> bool {
        self.state.process.as_ref().is_some_and(|known| known.identity.start == server.number.to_string())
    }
}
