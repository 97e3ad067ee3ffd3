//! Test fixture that drives a [`SidecarState`] event by event: desired state, observations of the server, ends of
//! calls.

use crate::{
    config::SidecarPolicy,
    decide::{AdapterCall, decide, due_fetches},
    readiness::readiness,
    state::{CallOutcome, PersistedState, PollError, PollRequest, PollStep, ServerObservation, SidecarState},
    status::status,
};
use jiff::Timestamp;
use rollora_adapter_source::{
    AdapterSource, FetchError, FetchFuture, FetchReason, FetchedAdapter, ProgressSink, SourceRef,
};
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
    operator_directives::{OperatorDirectives, Pilot},
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const POD_NAME: &str = "pod";

pub(crate) fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

pub(crate) fn ids(names: &[&str]) -> Vec<AdapterId> {
    names.iter().map(|name| id(name)).collect()
}

/// Directives with this server as the pilot of `names`.
pub(crate) fn pilot_directives(names: &[&str]) -> OperatorDirectives {
    let pilots = names.iter().map(|name| Pilot { id: id(name), pod: POD_NAME.to_owned() }).collect();
    OperatorDirectives {
        managed: names.iter().map(|name| (*name).to_owned()).collect(),
        pilots,
        ..OperatorDirectives::default()
    }
}

/// An entry with the source `/adapters/<name>`, or the hub name itself if it contains a slash.
fn adapter_entry(name: &str) -> AdapterEntry {
    let (name, required) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
    let source = if name.contains('/') { name.to_owned() } else { format!("/adapters/{name}") };
    AdapterEntry { id: id(name), source, base_model: None, required }
}

pub(crate) struct StateTestbed {
    pub(crate) state: SidecarState,
    pub(crate) now: Timestamp,
    pub(crate) process_start: Option<&'static str>,
    /// The registered adapters of the server, id to root.
    pub(crate) table: BTreeMap<String, String>,
    pub(crate) last_used: BTreeMap<AdapterId, Timestamp>,
}

impl StateTestbed {
    /// A state whose server is up and has no adapters.
    pub(crate) fn new() -> Self {
        let mut testbed = Self {
            state: SidecarState::new("http://server", SidecarPolicy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            process_start: Some("1"),
            table: BTreeMap::new(),
            last_used: BTreeMap::new(),
        };
        testbed.poll();
        testbed
    }

    /// Like [`Self::new`], with these listed under `ensureExist`. A `!` at the end of a name makes it required.
    pub(crate) fn with_listed(exist: &[&str]) -> Self {
        let mut testbed = Self::new();
        testbed.set_desired(exist, &[], None);
        testbed
    }

    /// Like [`Self::with_listed`], with an adapter source that fetches hub names.
    pub(crate) fn with_fetching(exist: &[&str]) -> Self {
        let mut testbed = Self::new();
        testbed.state.source_policy.adapter_source = Some(Arc::new(StubAdapterSource));
        testbed.set_desired(exist, &[], None);
        testbed
    }

    /// Starts the due fetches and returns their ids.
    pub(crate) fn begin_due_fetches(&mut self) -> Vec<String> {
        let due = due_fetches(&self.state, self.now);
        for fetch in &due {
            self.state.begin_fetch(&fetch.id, self.now);
        }
        due.iter().map(|fetch| fetch.id.to_string()).collect()
    }

    /// Finishes the fetch of `name` that is in flight.
    pub(crate) fn finish_fetch(&mut self, name: &str, result: Result<FetchedAdapter, FetchError>) {
        let fetch_id = self.state.adapters[&id(name)].fetch.active.map(|fetch| fetch.fetch_id);
        let fetch_id = fetch_id.unwrap_or_else(|| panic!("no fetch of {name} is in flight"));
        self.state.finish_fetch(&id(name), fetch_id, result, 0.0, self.now);
    }

    /// Like [`Self::with_listed`], with everything loaded and verified.
    pub(crate) fn with_verified(exist: &[&str]) -> Self {
        let mut testbed = Self::with_listed(exist);
        testbed.settle();
        testbed
    }

    pub(crate) fn set_desired(&mut self, exist: &[&str], not_exist: &[&str], directives: Option<OperatorDirectives>) {
        let entries = |names: &[&str]| names.iter().map(|name| adapter_entry(name)).collect();
        let file = AdaptersFile {
            ensure_exist: entries(exist),
            ensure_not_exist: entries(not_exist),
            ..AdaptersFile::default()
        };
        self.state.set_desired(&DesiredAdapters { file, directives, hash: ContentHash::default() }, POD_NAME, self.now);
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Polls everything that the server shows now.
    pub(crate) fn poll(&mut self) {
        let pending = self.state.begin_poll(PollRequest { metrics: true, models: true }, self.now);
        let observation = self.observe();
        self.state.finish_poll(pending, observation, self.now);
    }

    pub(crate) fn observe(&self) -> Result<ServerObservation, PollError> {
        let Some(process) = self.process_start else {
            return Err(PollError { step: PollStep::Health, error: unreachable_error() });
        };
        let card = |id: &str, root: &str, parent: Option<&str>| ModelCard {
            id: id.to_owned(),
            root: Some(root.to_owned()),
            parent: parent.map(str::to_owned),
        };
        let adapters = self.table.iter().map(|(id, root)| card(id, root, Some("base")));
        Ok(ServerObservation {
            metrics: Some(ServerMetrics {
                process_start_time: Some(process.to_owned()),
                max_loras: Some(2),
                last_used: self.last_used.clone(),
                has_statistics: true,
            }),
            models: Some(std::iter::once(card("base", "/base", None)).chain(adapters).collect()),
        })
    }

    /// Ends the server process and starts another one; a poll observes both.
    pub(crate) fn restart_server(&mut self, process: &'static str) {
        self.process_start = None;
        self.poll();
        self.table.clear();
        self.process_start = Some(process);
        self.poll();
    }

    /// Restarts the sidecar with its persisted state; the server keeps running.
    pub(crate) fn restart_sidecar(&mut self, persisted: PersistedState) {
        self.state = SidecarState::new("http://server", SidecarPolicy::default());
        self.state.restore(persisted);
    }

    /// Returns the calls that are decided now, as text.
    pub(crate) fn decided_calls(&self) -> Vec<String> {
        decide(&self.state, self.now).iter().map(call_name).collect()
    }

    /// Starts the calls that are decided now and returns them as text.
    pub(crate) fn begin_decided_calls(&mut self) -> Vec<String> {
        let actions = decide(&self.state, self.now);
        for action in &actions {
            self.state.begin_call(action, self.now);
        }
        actions.iter().map(call_name).collect()
    }

    /// Finishes the call about `name` with this result.
    pub(crate) fn finish_call(&mut self, name: &str, result: Result<(), VllmError>) {
        self.state.finish_call(&id(name), self.state.epoch(), CallOutcome::Executed(result), 0.0, self.now);
    }

    /// Starts the decided calls and lets them succeed, until no more are decided.
    pub(crate) fn settle(&mut self) {
        loop {
            let actions = decide(&self.state, self.now);
            if actions.is_empty() {
                break;
            }
            for action in &actions {
                self.state.begin_call(action, self.now);
                if let AdapterCall::Load { id, source, .. } = action {
                    self.table.insert(id.to_string(), source.clone());
                }
                self.finish_call(action.id().as_str(), Ok(()));
            }
        }
        self.latch_if_ready();
    }

    /// Latches readiness, as the loop does.
    pub(crate) fn latch_if_ready(&mut self) {
        if readiness(&self.state, self.now).ready {
            self.state.latch_ready();
        }
    }

    pub(crate) fn status(&self) -> SidecarStatus {
        status(&self.state, self.now)
    }

    pub(crate) fn adapter_status(&self, name: &str) -> AdapterStatus {
        self.status().adapter(&id(name)).cloned().unwrap_or_else(|| panic!("{name} is not in the status"))
    }

    pub(crate) fn adapter_state(&self, name: &str) -> AdapterState {
        self.adapter_status(name).state
    }

    /// Returns the reason of the last error; empty if there is none.
    pub(crate) fn error_reason(&self, name: &str) -> String {
        self.adapter_status(name).last_error.map(|problem| problem.reason).unwrap_or_default()
    }

    /// Returns whether the server is ready, and the reason.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let readiness = readiness(&self.state, self.now);
        (readiness.ready, readiness.reason)
    }
}

/// An adapter source with the folder `/fetched`; its fetches are finished by hand.
#[derive(Debug)]
struct StubAdapterSource;

impl AdapterSource for StubAdapterSource {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        match source {
            SourceRef::Path(path) => path.into(),
            SourceRef::Hub(name) => Path::new("/fetched").join(name.to_string()),
        }
    }

    fn fetch<'a>(&'a self, _: &'a SourceRef, _: ProgressSink<'a>) -> FetchFuture<'a> {
        unreachable!("tests finish fetches by hand")
    }
}

pub(crate) fn fetch_success() -> FetchedAdapter {
    FetchedAdapter { path: PathBuf::new(), commit: Some("c0ffee".to_owned()) }
}

pub(crate) fn fetch_error(reason: FetchReason) -> FetchError {
    FetchError { reason, message: format!("the hub: {reason:?}"), retry_after: None }
}

fn call_name(action: &AdapterCall) -> String {
    let verb = match action {
        AdapterCall::Load { .. } => "load",
        AdapterCall::Probe { .. } => "probe",
        AdapterCall::Unload { .. } => "unload",
    };
    format!("{verb} {}", action.id())
}

pub(crate) fn unreachable_error() -> VllmError {
    VllmError::Unreachable { endpoint: "http://server".to_owned(), detail: "refused".to_owned() }
}

pub(crate) fn connection_lost_error() -> VllmError {
    VllmError::ConnectionLost { call: "load".to_owned(), detail: "reset".to_owned() }
}

pub(crate) fn timeout_error() -> VllmError {
    VllmError::Timeout { call: "answer".to_owned(), after: Duration::from_secs(5) }
}

pub(crate) fn bad_adapter_error(name: &str) -> VllmError {
    VllmError::BadAdapter { id: id(name), path: String::new(), detail: "junk".to_owned() }
}

pub(crate) fn engine_dead_error() -> VllmError {
    VllmError::EngineDead { call: "answer".to_owned(), detail: String::new() }
}
