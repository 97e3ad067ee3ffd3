//! A vLLM server, its callers and its enemies, all in one thread, without a clock.

mod files;
mod laws;
mod server;
mod steps;

pub(crate) use steps::{Keeps, Listing, Manner, Step, entries, key, manner, step};

use files::BAD_FILES;
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, names::AdapterId, sidecar_status::ServerIdentity};
use rollora_sidecar::{
    decide::{Action, decide},
    in_force::{InForce, Texts},
    memory::{CallKind, Hold, Kept, LookError, Memory, Seen, Ticket},
    status::status,
};
use server::Process;
use std::{collections::BTreeMap, time::Duration};
use steps::Fate;
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

struct Call {
    action: Action,
    epoch: u64,
    process: Option<u32>,
    since: Timestamp,
}

/// A call that failed, and that nothing has happened since that could make it worth another try at once.
struct FailedCall {
    kind: CallKind,
    at: Timestamp,
    /// The process of the server that it is put down to.
    process: Option<ServerIdentity>,
}

type LookResult = Result<Seen, LookError>;

pub(crate) struct World {
    memory: Memory,
    now: Timestamp,
    server: Option<Process>,
    started: u32,
    calls: Vec<Call>,
    look: Option<(Ticket, Option<LookResult>)>,
    desired: Option<DesiredAdapters>,
    in_force: InForce,
    /// What was read last, until when a key that has vanished from it is waited for, and the clock of that.
    texts: Option<Texts>,
    waits_until: Option<Instant>,
    began: (Timestamp, Instant),
    manner: Manner,
    /// What is kept after the last event, and after the one before.
    kept: [Kept; 2],
    orphans: Vec<Call>,
    failed: BTreeMap<AdapterId, FailedCall>,
    /// The process that was ready once.
    was_ready: Option<ServerIdentity>,
    deadly: Vec<&'static str>,
    broken: Vec<&'static str>,
    killed: BTreeMap<&'static str, u32>,
    /// No process before this one may count as ready: the connection to it was seen to close.
    closed_before: u32,
    /// What stood in the table when the world calmed down.
    at_calm: BTreeMap<AdapterId, String>,
}

impl World {
    pub(crate) fn new(manner: Manner, deadly: &[&'static str], broken: &[&'static str]) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = Self {
            memory: Memory::new("http://server", manner.policy),
            now,
            server: None,
            started: 0,
            calls: Vec::new(),
            look: None,
            desired: None,
            in_force: InForce::default(),
            texts: None,
            waits_until: None,
            began: (now, Instant::now()),
            manner,
            kept: [Kept::default(), Kept::default()],
            orphans: Vec::new(),
            failed: BTreeMap::new(),
            was_ready: None,
            deadly: deadly.to_vec(),
            broken: broken.to_vec(),
            killed: BTreeMap::new(),
            closed_before: 0,
            at_calm: BTreeMap::new(),
        };
        world.start_server();
        world.think();
        world
    }

    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Desire(entries, key) => self.desire(entries, key.as_ref()),
            Step::Wait(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            Step::End(index, fate) if !self.calls.is_empty() => {
                let call = self.calls.remove(index.index(self.calls.len()));
                self.end(&call, *fate);
            }
            Step::LookSees => self.look_sees(Fate::Answered),
            Step::LookEnds(fate) => self.look_ends(*fate),
            Step::ServerEnds => self.server = None,
            Step::ServerStarts if self.server.is_none() => self.start_server(),
            Step::ConnectionCloses => self.connection_closes(),
            Step::Use(index) => {
                let (now, id) = (self.now, id(IDS[*index]));
                if let Some(server) = self.server.as_mut().filter(|server| server.adapters.contains_key(&id)) {
                    server.used.insert(id, now);
                }
            }
            Step::StrangerLoads(index) => {
                if let Some(server) = self.server.as_mut().filter(|_| IDS[*index] != "base") {
                    server.adapters.entry(id(IDS[*index])).or_insert_with(|| source(IDS[*index], false));
                }
            }
            Step::StrangerUnloads(index) => {
                if let Some(server) = &mut self.server {
                    server.adapters.remove(&id(IDS[*index]));
                    server.told.remove(&id(IDS[*index]));
                }
            }
            Step::BadFile(which) => self.bad_file(*which),
            Step::SidecarRestarts(keeps) => self.restart_sidecar(*keeps),
            Step::OrphanActs(index) if !self.orphans.is_empty() => {
                let call = self.orphans.remove(index.index(self.orphans.len()));
                let process = self.server.as_ref().map(|server| server.number);
                if process.is_some() && process == call.process {
                    drop(self.serve(&call.action));
                }
            }
            Step::End(..) | Step::ServerStarts | Step::OrphanActs(_) => {}
        }
        if !matches!(step, Step::Wait(_) | Step::End(..) | Step::LookSees | Step::LookEnds(_) | Step::Use(_)) {
            self.failed.clear();
        }
        self.think();
    }

    /// From here on every call is answered, and a server that ends is started again.
    pub(crate) fn calm(&mut self) {
        // What is in force from here on stays in force.
        if let Some(end) = self.waits_until {
            self.now += end.duration_since(self.instant());
            self.think();
        }
        if self.server.is_none() {
            self.start_server();
        }
        for call in std::mem::take(&mut self.calls) {
            self.end(&call, Fate::Answered);
        }
        self.orphans.clear();
        self.failed.clear();
        self.look_ends(Fate::Answered);
        self.connection_closes();
        if self.server.is_none() {
            self.start_server();
        }
        self.at_calm = self.server.as_ref().map(|server| server.adapters.clone()).unwrap_or_default();
        self.think();
    }

    /// Some seconds of calm.
    pub(crate) fn turn(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.think();
        for _ in 0..4 {
            self.look_ends(Fate::Answered);
            for call in std::mem::take(&mut self.calls) {
                self.end(&call, Fate::Answered);
            }
            self.think();
        }
        if self.server.is_none() {
            self.start_server();
            self.at_calm.clear();
        }
    }

    pub(crate) fn held(&self) -> Vec<(&'static str, Hold)> {
        IDS.iter().filter_map(|name| Some((*name, self.memory.adapters.get(&id(name))?.hold?))).collect()
    }

    pub(crate) fn killed(&self) -> &BTreeMap<&'static str, u32> {
        &self.killed
    }

    /// The present time as whoever reads files has it.
    fn instant(&self) -> Instant {
        self.began.1 + self.now.duration_since(self.began.0).unsigned_abs()
    }

    /// The sidecar ends and another one starts. What it had asked for may still be done.
    fn restart_sidecar(&mut self, keeps: Keeps) {
        let calls = std::mem::take(&mut self.calls);
        self.orphans.extend(calls);
        self.look = None;
        self.memory = Memory::new("http://server", self.manner.policy);
        if keeps != Keeps::Everything {
            self.was_ready = None;
        }
        let [last, before] = &self.kept;
        let kept = match keeps {
            Keeps::Everything => Some(last),
            Keeps::AllButTheLast => Some(before),
            Keeps::Nothing => None,
        };
        if let Some(kept) = kept {
            // As it is written and read.
            self.memory.recall(serde_json::from_str(&serde_json::to_string(kept).unwrap()).unwrap());
        }
        let desired = self.in_force.desired().borrow().clone();
        if let Some(desired) = desired {
            self.memory.desire(&desired, POD, self.now);
        }
        self.memory.file_error.clone_from(&self.in_force.error().borrow());
    }

    /// What the loop does between any two events.
    fn think(&mut self) {
        if self.waits_until.is_some_and(|end| self.instant() >= end)
            && let Some(texts) = self.texts.clone()
        {
            self.take(texts);
        }
        self.assert_no_unload_is_hidden();
        for action in decide(&self.memory, self.now) {
            self.assert_allowed(&action);
            self.memory.began(&action, self.now);
            let process = self.server.as_ref().map(|server| server.number);
            self.calls.push(Call { action, epoch: self.memory.epoch(), process, since: self.now });
        }
        if let Some(look) = self.memory.look_due(self.now) {
            assert!(self.look.is_none(), "two looks at once");
            self.look = Some((self.memory.look_began(look, self.now), None));
        }
        let status = status(&self.memory, self.now);
        if status.readiness.ready {
            self.memory.latch_ready();
        }
        let kept = self.memory.to_keep();
        if self.kept[0] != kept {
            self.kept.swap(0, 1);
            self.kept[0] = kept;
        }
        self.assert_latched(&status);
        self.assert_truth(&status);
    }

    /// The process that the memory speaks of.
    fn identity(&self) -> Option<ServerIdentity> {
        self.memory.known.as_ref().map(|known| known.identity.clone())
    }

    /// Whether this is the process that the memory speaks of.
    fn is_known(&self, server: &Process) -> bool {
        self.memory.known.as_ref().is_some_and(|known| known.identity.start == server.number.to_string())
    }
}
