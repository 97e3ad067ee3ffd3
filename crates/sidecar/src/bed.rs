//! A sidecar's memory driven by hand, for tests: what is desired, what the server shows, how calls end.

use crate::{
    config::Policy,
    decide::{Action, decide, fetches},
    memory::{Ended, Kept, Look, LookError, LookStep, Memory, Seen},
    readiness::readiness,
    status::status,
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
    operator_directives::{OperatorDirectives, Pilot},
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};
use rollora_store::{AdapterSource, FetchError, FetchFuture, FetchReason, FetchedAdapter, ProgressSink, SourceRef};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The name of the sidecar's server.
const NAME: &str = "pod";

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

pub(crate) fn ids(names: &[&str]) -> Vec<AdapterId> {
    names.iter().map(|name| id(name)).collect()
}

/// An operator's key by which this server tries `names`.
pub(crate) fn pilots(names: &[&str]) -> OperatorDirectives {
    let pilots = names.iter().map(|name| Pilot { id: id(name), pod: NAME.to_owned() }).collect();
    OperatorDirectives {
        managed: names.iter().map(|name| (*name).to_owned()).collect(),
        pilots,
        ..OperatorDirectives::default()
    }
}

/// Ids are loaded from `/adapters/<id>`; those that contain a slash come from the hub.
fn entry(name: &str) -> AdapterEntry {
    let (name, required) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
    let source = if name.contains('/') { name.to_owned() } else { format!("/adapters/{name}") };
    AdapterEntry { id: id(name), source, base_model: None, required }
}

pub(crate) struct Bed {
    pub(crate) memory: Memory,
    pub(crate) now: Timestamp,
    pub(crate) process: Option<&'static str>,
    /// What the server has registered, and what it says of last uses.
    pub(crate) table: BTreeMap<String, String>,
    pub(crate) used: BTreeMap<AdapterId, Timestamp>,
}

impl Bed {
    /// A server that is up, with an empty table.
    pub(crate) fn up() -> Self {
        let mut bed = Self {
            memory: Memory::new("http://server", Policy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            process: Some("1"),
            table: BTreeMap::new(),
            used: BTreeMap::new(),
        };
        bed.look();
        bed
    }

    /// The same, with these listed under `ensureExist`. A `!` at the end of a name makes it required.
    pub(crate) fn listing(exist: &[&str]) -> Self {
        let mut bed = Self::up();
        bed.desire(exist, &[], None);
        bed
    }

    /// The same, where hub names are fetched.
    pub(crate) fn fetching(exist: &[&str]) -> Self {
        let mut bed = Self::up();
        bed.memory.sources.store = Some(Arc::new(Shelf));
        bed.desire(exist, &[], None);
        bed
    }

    /// Begins the fetches that are due, and says of what.
    pub(crate) fn begin_fetches(&mut self) -> Vec<String> {
        let due = fetches(&self.memory, self.now);
        for fetch in &due {
            self.memory.fetch_began(&fetch.id, self.now);
        }
        due.iter().map(|fetch| fetch.id.to_string()).collect()
    }

    /// The fetch of `name` that is under way ends like this.
    pub(crate) fn end_fetch(&mut self, name: &str, ended: Result<FetchedAdapter, FetchError>) {
        let number = self.memory.adapters[&id(name)].fetch.under_way.map(|fetch| fetch.number);
        let number = number.unwrap_or_else(|| panic!("no fetch of {name} is under way"));
        self.memory.fetch_ended(&id(name), number, ended, 0.0, self.now);
    }

    /// The same, with everything loaded and verified.
    pub(crate) fn settled(exist: &[&str]) -> Self {
        let mut bed = Self::listing(exist);
        bed.settle();
        bed
    }

    pub(crate) fn desire(&mut self, exist: &[&str], not_exist: &[&str], key: Option<OperatorDirectives>) {
        let entries = |names: &[&str]| names.iter().map(|name| entry(name)).collect();
        let file = AdaptersFile {
            ensure_exist: entries(exist),
            ensure_not_exist: entries(not_exist),
            ..AdaptersFile::default()
        };
        self.memory.desire(&DesiredAdapters { file, directives: key, hash: ContentHash::default() }, NAME, self.now);
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// A look at everything that the server shows now.
    pub(crate) fn look(&mut self) {
        let ticket = self.memory.look_began(Look { metrics: true, models: true }, self.now);
        let seen = self.shows();
        self.memory.looked(ticket, seen, self.now);
    }

    pub(crate) fn shows(&self) -> Result<Seen, LookError> {
        let Some(process) = self.process else {
            return Err(LookError { step: LookStep::Health, error: unreachable() });
        };
        let card = |id: &str, root: &str, parent: Option<&str>| ModelCard {
            id: id.to_owned(),
            root: Some(root.to_owned()),
            parent: parent.map(str::to_owned),
        };
        let adapters = self.table.iter().map(|(id, root)| card(id, root, Some("base")));
        Ok(Seen {
            metrics: Some(ServerMetrics {
                process_start_time: Some(process.to_owned()),
                max_loras: Some(2),
                last_used: self.used.clone(),
                has_statistics: true,
            }),
            models: Some(std::iter::once(card("base", "/base", None)).chain(adapters).collect()),
        })
    }

    /// The server's process ends and another begins; both are seen.
    pub(crate) fn restart(&mut self, process: &'static str) {
        self.process = None;
        self.look();
        self.table.clear();
        self.process = Some(process);
        self.look();
    }

    /// The sidecar starts again with what it kept; nothing happens to the server.
    pub(crate) fn restart_sidecar(&mut self, kept: Kept) {
        self.memory = Memory::new("http://server", Policy::default());
        self.memory.recall(kept);
    }

    /// What would be asked now, as text.
    pub(crate) fn decided(&self) -> Vec<String> {
        decide(&self.memory, self.now).iter().map(name).collect()
    }

    /// Begins everything that is decided, and says what.
    pub(crate) fn begin(&mut self) -> Vec<String> {
        let actions = decide(&self.memory, self.now);
        for action in &actions {
            self.memory.began(action, self.now);
        }
        actions.iter().map(name).collect()
    }

    /// The call about `name` ends like this.
    pub(crate) fn end(&mut self, name: &str, answer: Result<(), VllmError>) {
        self.memory.ended(&id(name), self.memory.epoch(), Ended::Answered(answer), 0.0, self.now);
    }

    /// Begins what is decided and answers it well, until nothing more is decided.
    pub(crate) fn settle(&mut self) {
        loop {
            let actions = decide(&self.memory, self.now);
            if actions.is_empty() {
                break;
            }
            for action in &actions {
                self.memory.began(action, self.now);
                if let Action::Load { id, source, .. } = action {
                    self.table.insert(id.to_string(), source.clone());
                }
                self.end(action.id().as_str(), Ok(()));
            }
        }
        self.latch();
    }

    /// What the loop does when the server is found ready.
    pub(crate) fn latch(&mut self) {
        if readiness(&self.memory, self.now).ready {
            self.memory.latch_ready();
        }
    }

    pub(crate) fn status(&self) -> SidecarStatus {
        status(&self.memory, self.now)
    }

    pub(crate) fn adapter(&self, name: &str) -> AdapterStatus {
        self.status().adapter(&id(name)).cloned().unwrap_or_else(|| panic!("{name} is not in the status"))
    }

    pub(crate) fn state(&self, name: &str) -> AdapterState {
        self.adapter(name).state
    }

    /// The reason of its last error; empty where there is none.
    pub(crate) fn reason(&self, name: &str) -> String {
        self.adapter(name).last_error.map(|problem| problem.reason).unwrap_or_default()
    }

    /// Whether the server is ready, and the reason.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let readiness = readiness(&self.memory, self.now);
        (readiness.ready, readiness.reason)
    }
}

/// Keeps what the hub has under `/fetched`.
#[derive(Debug)]
struct Shelf;

impl AdapterSource for Shelf {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        match source {
            SourceRef::Path(path) => path.into(),
            SourceRef::Hub(name) => Path::new("/fetched").join(name.to_string()),
        }
    }

    fn fetch<'a>(&'a self, _: &'a SourceRef, _: ProgressSink<'a>) -> FetchFuture<'a> {
        unreachable!("the events of a fetch are played by hand")
    }
}

/// What a fetch brings.
pub(crate) fn fetched() -> FetchedAdapter {
    FetchedAdapter { path: PathBuf::new(), commit: Some("c0ffee".to_owned()) }
}

pub(crate) fn not_fetched(reason: FetchReason) -> FetchError {
    FetchError { reason, message: format!("the hub: {reason:?}"), retry_after: None }
}

fn name(action: &Action) -> String {
    let verb = match action {
        Action::Load { .. } => "load",
        Action::Probe { .. } => "probe",
        Action::Unload { .. } => "unload",
    };
    format!("{verb} {}", action.id())
}

pub(crate) fn unreachable() -> VllmError {
    VllmError::Unreachable { endpoint: "http://server".to_owned(), detail: "refused".to_owned() }
}

pub(crate) fn lost() -> VllmError {
    VllmError::ConnectionLost { call: "load".to_owned(), detail: "reset".to_owned() }
}

pub(crate) fn late() -> VllmError {
    VllmError::Timeout { call: "answer".to_owned(), after: Duration::from_secs(5) }
}

pub(crate) fn bad(name: &str) -> VllmError {
    VllmError::BadAdapter { id: id(name), path: String::new(), detail: "junk".to_owned() }
}

pub(crate) fn engine_dead() -> VllmError {
    VllmError::EngineDead { call: "answer".to_owned(), detail: String::new() }
}
