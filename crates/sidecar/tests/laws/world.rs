//! A vLLM server, its callers and its enemies, all in one thread, without a clock.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
    operator_key::{Admission, OperatorKey, Pilot},
    sidecar_status::SidecarStatus,
};
use rollora_sidecar::{
    Policy,
    decide::{Action, decide},
    memory::{CallKind, Ended, Hold, Look, LookError, LookStep, Memory, Seen, Ticket},
    source::{is_hub_name, same_source},
    status::status,
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The last one is the name of a base model.
pub(crate) const IDS: [&str; 5] = ["a", "b", "c", "d", "base"];
const POD: &str = "pod";

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// No answer in time; whether it took effect.
    Late(bool),
    /// The connection broke; whether it took effect.
    Lost(bool),
    Failed,
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
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        1 => prop::bool::ANY.prop_map(Fate::Late),
        1 => prop::bool::ANY.prop_map(Fate::Lost),
        1 => Just(Fate::Failed)
    ];
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
    deadly: Vec<&'static str>,
    broken: Vec<&'static str>,
    killed: BTreeMap<&'static str, u32>,
    /// No process before this one may count as ready: the connection to it was seen to close.
    closed_before: u32,
    /// What stood in the table when the world calmed down.
    at_calm: BTreeMap<AdapterId, String>,
}

impl World {
    pub(crate) fn new(deadly: &[&'static str], broken: &[&'static str]) -> Self {
        let mut world = Self {
            memory: Memory::new("http://server", Policy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            server: None,
            started: 0,
            calls: Vec::new(),
            look: None,
            desired: None,
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
            Step::Desire(entries, key) => self.desire(entries, key.clone()),
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
            Step::End(..) | Step::ServerStarts => {}
        }
        self.think();
    }

    /// From here on every call is answered, and a server that ends is started again.
    pub(crate) fn calm(&mut self) {
        if self.server.is_none() {
            self.start_server();
        }
        for call in std::mem::take(&mut self.calls) {
            self.end(&call, Fate::Answered);
        }
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

    fn desire(&mut self, entries: &Entries, key: Option<OperatorKey>) {
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
        let desired = DesiredAdapters { file, key, hash: ContentHash::default() };
        self.memory.desire(&desired, POD, self.now);
        self.desired = Some(desired);
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
        for action in decide(&self.memory, self.now) {
            self.assert_allowed(&action);
            self.memory.began(&action, self.now);
            let process = self.server.as_ref().map(|server| server.number);
            self.calls.push(Call { action, epoch: self.memory.epoch(), process });
        }
        if let Some(look) = self.memory.look_due(self.now) {
            assert!(self.look.is_none(), "two looks at once");
            self.look = Some((self.memory.look_began(look, self.now), None));
        }
        let status = status(&self.memory, self.now);
        if status.readiness.ready {
            self.memory.latch_ready();
        }
        self.assert_truth(&status);
    }

    /// Nothing is told of the server that it did not show.
    fn assert_truth(&self, status: &SidecarStatus) {
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
        match action {
            Action::Load { source, .. } => {
                let entry = exist.or(not_exist.filter(|_| serving)).expect("not wanted");
                assert_eq!(*source, entry.source);
                assert_eq!(admission, Admission::Granted, "{action:?}");
                let told = self.server.as_ref().filter(|server| self.is_known(server)).map(|server| &server.told);
                assert!(!told.is_some_and(|told| told.contains(id)), "loaded already: {action:?}");
                assert!(count(CallKind::Load) < 4, "too many loads");
                let hub = |call: &Call| matches!(&call.action, Action::Load { from_hub: true, .. });
                assert!(!is_hub_name(source) || !present.iter().any(|call| hub(call)), "two downloads");
            }
            Action::Probe { .. } => {
                assert_eq!(admission, Admission::Granted, "{action:?}");
                assert_eq!(count(CallKind::Probe), 0, "two probes");
            }
            Action::Unload { .. } => {
                assert!(!serving, "it serves: {action:?}");
                assert!(not_exist.is_some() || admission == Admission::Rejected, "wanted: {action:?}");
            }
        }
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
            (Some(_), Fate::Failed) => {
                Err(VllmError::ServerError { call: text.clone(), status: 500, detail: String::new() })
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
        self.memory.ended(call.action.id(), call.epoch, Ended::Answered(answer), 0.5, self.now);
    }

    /// What is asked just before an unload.
    fn is_idle(&self, action: &Action) -> bool {
        let Action::Unload { id, last_used } = action else { return true };
        let used = self.server.as_ref().and_then(|server| server.used.get(id));
        let idle = used == last_used.as_ref();
        if let Some(used) = used.filter(|_| idle) {
            assert!(self.now.duration_since(*used) >= SignedDuration::from_secs(30), "in use: {action:?}");
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
                (Some(server), Fate::Answered) => Ok(server.shows(ticket.look)),
                (Some(_), Fate::Late(first)) => Err(LookError {
                    step: if first { LookStep::Health } else { LookStep::Models },
                    error: VllmError::Timeout { call: String::new(), after: Duration::ZERO },
                }),
                (Some(_), Fate::Lost(first)) => Err(LookError {
                    step: if first { LookStep::Metrics } else { LookStep::Models },
                    error: VllmError::ConnectionLost { call: String::new(), detail: String::new() },
                }),
                (Some(_), Fate::Failed) => Err(LookError {
                    step: LookStep::Models,
                    error: VllmError::ServerError { call: String::new(), status: 500, detail: String::new() },
                }),
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
            }),
            models: look.models.then(|| std::iter::once(base).chain(self.adapters.iter().map(adapter)).collect()),
        }
    }
}

fn find<'a>(entries: &'a [AdapterEntry], id: &AdapterId) -> Option<&'a AdapterEntry> {
    entries.iter().find(|entry| entry.id == *id)
}
