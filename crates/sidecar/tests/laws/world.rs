//! A vLLM server, its callers and its enemies, all in one thread, without a clock.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, DesiredAdapters},
    names::AdapterId,
    operator_key::{Admission, OperatorKey, Pilot},
    sidecar_status::{ServerIdentity, SidecarStatus},
};
use rollora_sidecar::{
    Policy,
    decide::{Action, decide},
    in_force::{InForce, Texts},
    memory::{CallKind, Ended, Hold, Kept, Look, LookError, LookStep, Memory, Seen, Ticket},
    source::{is_hub_name, same_source},
    status::status,
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// The last one is the name of a base model.
pub(crate) const IDS: [&str; 5] = ["a", "b", "c", "d", "base"];
const POD: &str = "pod";

/// What a person, a half-written file, or an operator of another version may leave there, and a folder without it.
const BAD_FILES: [(Result<&str, &str>, Option<&str>); 5] = [
    (Ok(""), None),
    (Ok("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: a\n      sour"), None),
    (Ok("vLLMLoRAConfig: ["), None),
    (Ok("vLLMLoRAConfig: {}\n"), Some("serving: 1\n")),
    (Err("file: there is no such file"), None),
];

/// In which lists an id stands, with which source.
pub(crate) type Entries = Vec<(Listing, bool)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Nowhere,
    Exist,
    NotExist,
    Both,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Desire(Entries, Option<OperatorKey>),
    Wait(u64),
    /// One of the calls under way ends.
    End(prop::sample::Index, Fate),
    /// The look under way sees what is there now, and is delivered later.
    LookSees,
    LookEnds(Fate),
    ServerEnds,
    ServerStarts,
    ConnectionCloses,
    Use(usize),
    StrangerLoads(usize),
    StrangerUnloads(usize),
    /// Content of the file that nobody can use.
    BadFile(usize),
    /// The sidecar ends without a word and starts again with what it kept.
    SidecarRestarts(Keeps),
    /// A call that an earlier run of the sidecar began takes effect after all.
    OrphanActs(prop::sample::Index),
}

/// What a sidecar that starts again finds of what the one before it kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    Everything,
    /// It ended before it could write the last change.
    AllButTheLast,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// No answer in time; whether it took effect.
    Late(bool),
    /// The connection broke; whether it took effect.
    Lost(bool),
    Failed(Failure),
}

/// What it is answered that is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A 5xx; whether it was done all the same.
    Server(bool),
    Unauthorized,
    UpdatingOff,
    ShuttingDown,
    EngineDead,
    Unexpected,
}

/// How the sidecar is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) policy: Policy,
    /// The server shows no metrics: neither who it is nor what was used.
    pub(crate) metrics_closed: bool,
}

impl Manner {
    pub(crate) fn usual() -> Self {
        Self { policy: Policy::default(), metrics_closed: false }
    }
}

pub(crate) fn manner() -> impl Strategy<Value = Manner> {
    (prop::bool::weighted(0.8), 1..=4_usize, 0..=40_u64, prop::bool::weighted(0.1)).prop_map(
        |(probe, max_parallel, grace, metrics_closed)| {
            let unload_grace = Duration::from_secs(grace);
            Manner { policy: Policy { probe, max_parallel, unload_grace, ..Policy::default() }, metrics_closed }
        },
    )
}

pub(crate) fn entries() -> impl Strategy<Value = Entries> {
    let listing = prop_oneof![
        1 => Just(Listing::Nowhere),
        3 => Just(Listing::Exist),
        2 => Just(Listing::NotExist),
        1 => Just(Listing::Both)
    ];
    prop::collection::vec((listing, prop::bool::weighted(0.2)), IDS.len())
}

pub(crate) fn key() -> impl Strategy<Value = Option<OperatorKey>> {
    let some = || {
        prop::sample::subsequence(IDS.to_vec(), 0..=IDS.len())
            .prop_map(|ids| ids.into_iter().map(id).collect::<Vec<_>>())
    };
    let pilots = prop::collection::vec((0..IDS.len(), prop::bool::ANY), 0..=1);
    let key = (some(), some(), pilots, some(), prop::sample::subsequence(IDS.to_vec(), 0..=1)).prop_map(
        |(managed, admitted, pilots, serving, rejected)| OperatorKey {
            managed: managed.into_iter().map(String::from).collect(),
            admitted,
            pilots: pilots
                .into_iter()
                .map(|(index, here)| Pilot { id: id(IDS[index]), pod: if here { POD } else { "other" }.to_owned() })
                .collect(),
            serving,
            rejected: rejected.into_iter().map(id).collect(),
        },
    );
    prop::option::of(key)
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        4 => prop::bool::ANY.prop_map(Failure::Server),
        1 => Just(Failure::Unauthorized),
        1 => Just(Failure::UpdatingOff),
        1 => Just(Failure::ShuttingDown),
        1 => Just(Failure::EngineDead),
        1 => Just(Failure::Unexpected),
    ];
    let fate = prop_oneof![
        12 => Just(Fate::Answered),
        2 => prop::bool::ANY.prop_map(Fate::Late),
        2 => prop::bool::ANY.prop_map(Fate::Lost),
        3 => failure.prop_map(Fate::Failed)
    ];
    let keeps = prop_oneof![Just(Keeps::Everything), Just(Keeps::AllButTheLast), Just(Keeps::Nothing)];
    prop_oneof![
        2 => (entries(), key()).prop_map(|(entries, key)| Step::Desire(entries, key)),
        4 => prop_oneof![1..2_000_u64, 1..60_000_u64].prop_map(Step::Wait),
        8 => (any::<prop::sample::Index>(), fate.clone()).prop_map(|(index, fate)| Step::End(index, fate)),
        2 => Just(Step::LookSees),
        8 => fate.prop_map(Step::LookEnds),
        1 => Just(Step::ServerEnds),
        2 => Just(Step::ServerStarts),
        1 => Just(Step::ConnectionCloses),
        2 => (0..IDS.len()).prop_map(Step::Use),
        1 => (0..IDS.len()).prop_map(Step::StrangerLoads),
        1 => (0..IDS.len()).prop_map(Step::StrangerUnloads),
        1 => (0..BAD_FILES.len()).prop_map(Step::BadFile),
        1 => keeps.prop_map(Step::SidecarRestarts),
        1 => any::<prop::sample::Index>().prop_map(Step::OrphanActs),
    ]
}

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

#[derive(Default)]
struct Process {
    number: u32,
    adapters: BTreeMap<AdapterId, String>,
    used: BTreeMap<AdapterId, Timestamp>,
    /// Adapters that answered.
    proven: BTreeSet<AdapterId>,
    /// Adapters that it said it had loaded, and that nobody unloaded since.
    told: BTreeSet<AdapterId>,
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

    /// The table holds what the file in force says, and the status tells so.
    pub(crate) fn assert_the_file_is_true(&self) {
        let Some(desired) = &self.desired else { return };
        let table = &self.server.as_ref().unwrap().adapters;
        let status = status(&self.memory, self.now);
        assert!(self.calls.is_empty(), "calls go on without end");
        for name in IDS.iter().filter(|name| **name != "base") {
            let id = id(name);
            let (exist, not_exist) = (find(&desired.file.ensure_exist, &id), find(&desired.file.ensure_not_exist, &id));
            let serving = desired.key.as_ref().is_some_and(|key| key.serving.contains(&id));
            let admission = desired.key.as_ref().map_or(Admission::Granted, |key| key.admission(&id, POD));
            let adapter = self.memory.adapters.get(&id);
            let held = adapter.is_some_and(|adapter| adapter.hold.is_some());
            let tried = !self.deadly.contains(name) && !self.broken.contains(name) && !held;
            let context = || format!("{name}: {adapter:#?}\n{:#?}", status.adapter(&id));
            match (exist, not_exist, admission) {
                (Some(_), Some(_), _) | (None, None, _) | (Some(_), None, Admission::Waiting) => {
                    assert_eq!(table.get(&id), self.at_calm.get(&id), "left alone\n{}", context());
                }
                (Some(entry), None, Admission::Granted) if tried => {
                    let root = table.get(&id).unwrap_or_else(|| panic!("not loaded\n{}", context()));
                    assert!(!same_source(root, &entry.source) || status.is_verified(&id), "{}", context());
                }
                (Some(_), None, Admission::Rejected) | (None, Some(_), _) if !serving => {
                    assert!(!table.contains_key(&id), "not unloaded\n{}", context());
                }
                (None, Some(_), Admission::Granted) if tried => {
                    assert!(table.contains_key(&id), "not held\n{}", context());
                }
                _ => {}
            }
        }
    }

    fn desire(&mut self, entries: &Entries, key: Option<&OperatorKey>) {
        let mut file = AdaptersFile::default();
        for (name, (listing, other)) in IDS.iter().zip(entries) {
            let entry = AdapterEntry { id: id(name), source: source(name, *other), base_model: None, required: false };
            if matches!(listing, Listing::Exist | Listing::Both) {
                file.ensure_exist.push(entry.clone());
            }
            if matches!(listing, Listing::NotExist | Listing::Both) {
                file.ensure_not_exist.push(entry);
            }
        }
        let user = file_text(&file);
        let texts = Texts { user: Ok(user), operator: key.map(|key| Ok(key.to_yaml())) };
        let had_a_key = self.desired.as_ref().is_some_and(|desired| desired.key.is_some());
        let before = self.desired.clone();
        self.take(texts);
        let desired = self.desired.as_ref().expect("a good file");
        if had_a_key && key.is_none() && self.waits_until.is_some() {
            assert_eq!(self.desired, before, "the key has vanished");
            return;
        }
        assert_eq!(desired.file.ensure_exist, file.ensure_exist);
        assert_eq!(desired.file.ensure_not_exist, file.ensure_not_exist);
    }

    /// The present time as whoever reads files has it.
    fn instant(&self) -> Instant {
        self.began.1 + self.now.duration_since(self.began.0).unsigned_abs()
    }

    /// The file and what the operator wrote beside it are read, as the program reads them.
    fn take(&mut self, texts: Texts) {
        let before = self.in_force.desired().borrow().clone();
        self.in_force.take(texts.read(&"file", "configmap.yaml"), self.instant());
        self.texts = Some(texts);
        self.waits_until = self.in_force.waits_until(self.instant());
        let after = self.in_force.desired().borrow().clone();
        if let Some(desired) = after.as_ref().filter(|after| before.as_ref() != Some(after)) {
            self.memory.desire(desired, POD, self.now);
        }
        self.memory.file_error.clone_from(&self.in_force.error().borrow());
        self.desired = after.as_deref().cloned();
    }

    /// Nothing but the error that is told changes by a file that cannot be used.
    fn bad_file(&mut self, which: usize) {
        let (user, operator) = BAD_FILES[which];
        let before = self.in_force.desired().borrow().clone();
        let adapters = self.memory.adapters.clone();
        let user = user.map(str::to_owned).map_err(str::to_owned);
        self.take(Texts { user, operator: operator.map(|text| Ok(text.to_owned())) });
        assert_eq!(*self.in_force.desired().borrow(), before);
        assert_eq!(self.memory.adapters, adapters);
        assert!(status(&self.memory, self.now).config.error.is_some(), "nobody is told");
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

    fn start_server(&mut self) {
        self.started += 1;
        self.server = Some(Process { number: self.started, ..Process::default() });
    }

    fn connection_closes(&mut self) {
        self.memory.connection_closed();
        if !self.memory.is_up() {
            self.closed_before = self.server.as_ref().map_or(self.started + 1, |server| server.number);
        }
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

    /// What was ready once stays so until it ends or hangs in a download, whatever else is listed, fails or goes.
    fn assert_latched(&mut self, status: &SidecarStatus) {
        let readiness = &status.readiness;
        if readiness.ready {
            self.was_ready = self.identity();
        } else if self.memory.is_up() && self.identity().is_some() && self.identity() == self.was_ready {
            assert_eq!(readiness.reason, "HubLoadBlocksServer", "{}", readiness.message);
        }
    }

    /// Nobody may count on what an unload that was asked for will take away.
    fn assert_no_unload_is_hidden(&self) {
        let status = status(&self.memory, self.now);
        for call in self.calls.iter().filter(|call| call.action.kind() == CallKind::Unload) {
            assert!(!status.is_resident(call.action.id()), "{:?}: {:#?}", call.action, self.memory.adapters);
        }
    }

    /// Nothing is told of the server that it did not show.
    fn assert_truth(&self, status: &SidecarStatus) {
        if self.manner.metrics_closed || !self.manner.policy.probe {
            // It does not say which process it is, or nothing is proven.
            return;
        }
        let process: Option<u32> = status.server.as_ref().map(|server| server.start.parse().unwrap());
        if status.readiness.ready {
            assert!(process >= Some(self.closed_before), "ready by a process that is gone");
        }
        if let Some(server) = self.server.as_ref().filter(|server| Some(server.number) == process) {
            for id in IDS.map(id) {
                let known = !status.is_verified(&id) || server.proven.contains(&id);
                assert!(known, "{id} never answered: {:#?}", self.memory.adapters.get(&id));
            }
        }
    }

    fn assert_allowed(&self, action: &Action) {
        let desired = self.desired.as_ref().expect("no file, no call");
        let id = action.id();
        let (exist, not_exist) = (find(&desired.file.ensure_exist, id), find(&desired.file.ensure_not_exist, id));
        let serving = desired.key.as_ref().is_some_and(|key| key.serving.contains(id));
        let admission = desired.key.as_ref().map_or(Admission::Granted, |key| key.admission(id, POD));
        let present: Vec<_> = self.calls.iter().filter(|call| call.epoch == self.memory.epoch()).collect();
        let count = |kind| present.iter().filter(|call| call.action.kind() == kind).count();
        assert!(id.as_str() != "base", "a base model: {action:?}");
        assert!(exist.is_some() != not_exist.is_some(), "in both lists or in none: {action:?}");
        assert!(present.iter().all(|call| call.action.id() != id), "two calls at once: {action:?}");
        if let Some(failed) =
            self.failed.get(id).filter(|failed| failed.kind == action.kind() && failed.process == self.identity())
        {
            let after = self.now.duration_since(failed.at);
            assert!(after >= SignedDuration::from_secs(1), "again after {after:?}: {action:?}");
        }
        match action {
            Action::Load { source, .. } => {
                let entry = exist.or(not_exist.filter(|_| serving)).expect("not wanted");
                assert_eq!(*source, entry.source);
                assert_eq!(admission, Admission::Granted, "{action:?}");
                let told = self.server.as_ref().filter(|server| self.is_known(server)).map(|server| &server.told);
                assert!(!told.is_some_and(|told| told.contains(id)), "loaded already: {action:?}");
                let most = self.manner.policy.max_parallel;
                assert!(present.iter().filter(|call| self.is_young_load(call)).count() < most, "too many loads");
                assert!(count(CallKind::Load) < 2 * most, "too many loads hang");
                let hub = |call: &Call| matches!(&call.action, Action::Load { from_hub: true, .. });
                assert!(!is_hub_name(source) || !present.iter().any(|call| hub(call)), "two downloads");
            }
            Action::Probe { .. } => {
                assert_eq!(admission, Admission::Granted, "{action:?}");
                assert_eq!(count(CallKind::Probe), 0, "two probes");
                assert!(self.manner.policy.probe, "nobody wants proof");
            }
            Action::Unload { .. } => {
                assert!(!serving, "it serves: {action:?}");
                assert!(!present.iter().any(|call| self.is_young_load(call)), "before a load: {action:?}");
                assert!(not_exist.is_some() || admission == Admission::Rejected, "wanted: {action:?}");
            }
        }
    }

    /// The process that the memory speaks of.
    fn identity(&self) -> Option<ServerIdentity> {
        self.memory.known.as_ref().map(|known| known.identity.clone())
    }

    fn is_young_load(&self, call: &Call) -> bool {
        let age = self.now.duration_since(call.since);
        matches!(call.action, Action::Load { .. }) && age < SignedDuration::from_secs(10)
    }

    /// Whether this is the process that the memory speaks of.
    fn is_known(&self, server: &Process) -> bool {
        self.memory.known.as_ref().is_some_and(|known| known.identity.start == server.number.to_string())
    }

    fn end(&mut self, call: &Call, fate: Fate) {
        let text = format!("{:?}", call.action);
        let lost = || VllmError::ConnectionLost { call: text.clone(), detail: String::new() };
        let same_process = self.server.as_ref().map(|server| server.number) == call.process;
        let answer = match (call.process, fate) {
            (None, _) => Err(VllmError::Unreachable { endpoint: String::new(), detail: String::new() }),
            (Some(_), _) if !same_process => Err(lost()),
            (Some(_), _) if !self.is_idle(&call.action) => {
                return self.memory.ended(call.action.id(), call.epoch, Ended::Skipped, 0.5, self.now);
            }
            (Some(_), Fate::Answered) => self.serve(&call.action),
            (Some(_), Fate::Failed(failure)) => {
                if failure == Failure::Server(true) {
                    drop(self.serve(&call.action));
                }
                Err(failure.error(&text))
            }
            (Some(_), Fate::Late(done) | Fate::Lost(done)) => {
                if done {
                    drop(self.serve(&call.action));
                }
                match fate {
                    Fate::Late(_) => Err(VllmError::Timeout { call: text.clone(), after: Duration::ZERO }),
                    _ => Err(lost()),
                }
            }
        };
        // What is answered by a process that nobody has seen yet is not counted on.
        let known =
            call.epoch == self.memory.epoch() && self.server.as_ref().is_some_and(|server| self.is_known(server));
        if let (Some(server), Ok(()), true) = (&mut self.server, &answer, known) {
            let id = call.action.id().clone();
            match call.action.kind() {
                CallKind::Load => drop(server.told.insert(id)),
                CallKind::Probe => drop(server.proven.insert(id)),
                CallKind::Unload => {}
            }
        }
        let fails_for_sure = matches!(fate, Fate::Failed(failure) if failure != Failure::Server(true));
        if same_process && fails_for_sure && call.epoch == self.memory.epoch() {
            let failed = FailedCall { kind: call.action.kind(), at: self.now, process: self.identity() };
            self.failed.insert(call.action.id().clone(), failed);
        }
        self.memory.ended(call.action.id(), call.epoch, Ended::Answered(answer), 0.5, self.now);
    }

    /// What is asked just before an unload.
    fn is_idle(&self, action: &Action) -> bool {
        let Action::Unload { id, last_used } = action else { return true };
        let used = self.server.as_ref().and_then(|server| server.used.get(id));
        let used = used.filter(|_| !self.manner.metrics_closed);
        let idle = used == last_used.as_ref();
        if let Some(used) = used.filter(|_| idle) {
            let grace = SignedDuration::try_from(self.manner.policy.unload_grace).unwrap();
            let ago = self.now.duration_since(*used);
            assert!(self.manner.metrics_closed || ago >= grace, "used {ago:?} ago: {action:?}");
        }
        idle
    }

    /// What vLLM does with a call.
    fn serve(&mut self, action: &Action) -> Result<(), VllmError> {
        let id = action.id().clone();
        let name = IDS.iter().copied().find(|name| *name == id.as_str()).unwrap();
        let deadly = self.deadly.contains(&name) && !matches!(action, Action::Unload { .. });
        if deadly {
            self.server = None;
            *self.killed.entry(name).or_default() += 1;
            return Err(VllmError::ConnectionLost { call: String::new(), detail: "killed".to_owned() });
        }
        let server = self.server.as_mut().unwrap();
        if matches!(action, Action::Unload { .. }) {
            server.told.remove(&id);
        }
        let table = &mut server.adapters;
        match action {
            Action::Load { source, .. } if self.broken.contains(&name) => {
                Err(VllmError::BadAdapter { id, path: source.clone(), detail: String::new() })
            }
            Action::Load { .. } if table.contains_key(&id) => Err(VllmError::AlreadyLoaded { id }),
            Action::Load { source, .. } => {
                table.insert(id, source.clone());
                Ok(())
            }
            Action::Probe { .. } if table.contains_key(&id) => Ok(()),
            Action::Unload { .. } if table.remove(&id).is_some() => Ok(()),
            Action::Probe { .. } | Action::Unload { .. } => Err(VllmError::UnknownAdapter { id }),
        }
    }

    fn look_sees(&mut self, fate: Fate) {
        let Some((ticket, seen)) = &mut self.look else { return };
        if seen.is_none() {
            *seen = Some(match (&self.server, fate) {
                (None, _) => Err(LookError {
                    step: LookStep::Health,
                    error: VllmError::Unreachable { endpoint: String::new(), detail: String::new() },
                }),
                (Some(server), Fate::Answered) => {
                    let mut seen = server.shows(ticket.look);
                    if self.manner.metrics_closed && seen.metrics.is_some() {
                        seen.metrics = Some(ServerMetrics::default());
                    }
                    Ok(seen)
                }
                (Some(_), Fate::Late(first)) => Err(LookError {
                    step: if first { LookStep::Health } else { LookStep::Models },
                    error: VllmError::Timeout { call: String::new(), after: Duration::ZERO },
                }),
                (Some(_), Fate::Lost(first)) => Err(LookError {
                    step: if first { LookStep::Metrics } else { LookStep::Models },
                    error: VllmError::ConnectionLost { call: String::new(), detail: String::new() },
                }),
                (Some(_), Fate::Failed(failure)) => {
                    Err(LookError { step: LookStep::Models, error: failure.error("list its models") })
                }
            });
        }
    }

    fn look_ends(&mut self, fate: Fate) {
        self.look_sees(fate);
        if let Some((ticket, Some(seen))) = self.look.take() {
            self.memory.looked(ticket, seen, self.now);
        }
    }
}

impl Failure {
    fn error(self, call: &str) -> VllmError {
        let (call, detail) = (call.to_owned(), String::new());
        match self {
            Self::Server(_) => VllmError::ServerError { call, status: 500, detail },
            Self::Unauthorized => VllmError::Unauthorized,
            Self::UpdatingOff => VllmError::RuntimeUpdatingOff,
            Self::ShuttingDown => VllmError::ShuttingDown { call },
            Self::EngineDead => VllmError::EngineDead { call, detail },
            Self::Unexpected => VllmError::Unexpected { call, status: 429, detail },
        }
    }
}

impl Process {
    fn shows(&self, look: Look) -> Seen {
        let base = ModelCard { id: "base".to_owned(), root: None, parent: None };
        let adapter = |(id, root): (&AdapterId, &String)| ModelCard {
            id: id.to_string(),
            root: Some(root.clone()),
            parent: Some("base".to_owned()),
        };
        Seen {
            metrics: look.metrics.then(|| ServerMetrics {
                start: Some(self.number.to_string()),
                max_loras: None,
                last_used: self.used.clone(),
                has_statistics: true,
            }),
            models: look.models.then(|| std::iter::once(base).chain(self.adapters.iter().map(adapter)).collect()),
        }
    }
}

fn find<'a>(entries: &'a [AdapterEntry], id: &AdapterId) -> Option<&'a AdapterEntry> {
    entries.iter().find(|entry| entry.id == *id)
}

/// The file as a person would have written it.
fn file_text(file: &AdaptersFile) -> String {
    let list = |entries: &[AdapterEntry]| -> String {
        let entry = |entry: &AdapterEntry| format!("\n    - id: {}\n      source: {}", entry.id, entry.source);
        if entries.is_empty() { " []".to_owned() } else { entries.iter().map(entry).collect() }
    };
    let (exist, not_exist) = (list(&file.ensure_exist), list(&file.ensure_not_exist));
    format!("vLLMLoRAConfig:\n  ensureExist:\n    models:{exist}\n  ensureNotExist:\n    models:{not_exist}\n")
}
