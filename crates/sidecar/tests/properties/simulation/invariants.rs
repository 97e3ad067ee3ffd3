//! Invariants after every event, and the expected state at the end.

use super::{IDS, POD, SimulatedCall, Simulation, files::find_entry, id};
use jiff::SignedDuration;
use rollora_api::{operator_directives::Admission, sidecar_status::SidecarStatus};
use rollora_sidecar::{
    decide::AdapterCall,
    source::{is_hub_name, same_source},
    state::CallKind,
    status::status,
};

impl Simulation {
    /// Asserts that the server holds what the active file wants, and that the status reports that.
    pub(crate) fn assert_converged(&self) {
        let Some(desired) = &self.desired else { return };
        let table = &self.server.as_ref().unwrap().adapters;
        let status = status(&self.state, self.now);
        assert!(self.calls.is_empty(), "calls never end");
        for name in IDS.iter().filter(|name| **name != "base") {
            let id = id(name);
            let (exist, not_exist) =
                (find_entry(&desired.file.ensure_exist, &id), find_entry(&desired.file.ensure_not_exist, &id));
            let serving = desired.directives.as_ref().is_some_and(|directives| directives.serving.contains(&id));
            let admission =
                desired.directives.as_ref().map_or(Admission::Granted, |directives| directives.admission(&id, POD));
            let adapter = self.state.adapters.get(&id);
            let held = adapter.is_some_and(|adapter| adapter.crash_hold.is_some());
            let tried = !self.crashing.contains(name) && !self.broken.contains(name) && !held;
            let context = || format!("{name}: {adapter:#?}\n{:#?}", status.adapter(&id));
            match (exist, not_exist, admission) {
                (Some(_), Some(_), _) | (None, None, _) | (Some(_), None, Admission::Waiting) => {
                    assert_eq!(table.get(&id), self.table_when_quiet.get(&id), "must be left alone\n{}", context());
                }
                (Some(entry), None, Admission::Granted) if tried => {
                    let root = table.get(&id).unwrap_or_else(|| panic!("not loaded\n{}", context()));
                    assert!(!same_source(root, &entry.source) || status.is_verified(&id), "{}", context());
                }
                (Some(_), None, Admission::Rejected) | (None, Some(_), _) if !serving => {
                    assert!(!table.contains_key(&id), "not unloaded\n{}", context());
                }
                (None, Some(_), Admission::Granted) if tried => {
                    assert!(table.contains_key(&id), "not kept\n{}", context());
                }
                _ => {}
            }
        }
    }

    /// Asserts that a ready process stays ready until it ends or hangs in a download.
    pub(super) fn assert_readiness_latched(&mut self, status: &SidecarStatus) {
        let readiness = &status.readiness;
        if readiness.ready {
            self.was_ready = self.known_identity();
        } else if self.state.is_up() && self.known_identity().is_some() && self.known_identity() == self.was_ready {
            assert_eq!(readiness.reason, "HubLoadBlocksServer", "{}", readiness.message);
        }
    }

    /// Asserts that no adapter with an unload in flight is reported as resident.
    pub(super) fn assert_unloads_visible(&self) {
        let status = status(&self.state, self.now);
        for call in self.calls.iter().filter(|call| call.action.kind() == CallKind::Unload) {
            assert!(!status.is_resident(call.action.id()), "{:?}: {:#?}", call.action, self.state.adapters);
        }
    }

    /// Asserts that the status reports nothing that the server did not show.
    pub(super) fn assert_status_accurate(&self, status: &SidecarStatus) {
        if self.config.metrics_closed || !self.config.policy.probe_enabled {
            // The process cannot be identified, or nothing is verified.
            return;
        }
        let process: Option<u32> = status.server.as_ref().map(|server| server.start.parse().unwrap());
        if status.readiness.ready {
            assert!(process >= Some(self.min_ready_process), "ready because of a process that has ended");
        }
        if let Some(server) = self.server.as_ref().filter(|server| Some(server.number) == process) {
            for id in IDS.map(id) {
                let accurate = !status.is_verified(&id) || server.verified.contains(&id);
                assert!(accurate, "{id} never answered a completion: {:#?}", self.state.adapters.get(&id));
            }
        }
    }

    pub(super) fn assert_allowed(&self, action: &AdapterCall) {
        let desired = self.desired.as_ref().expect("a call without a file");
        let id = action.id();
        let (exist, not_exist) =
            (find_entry(&desired.file.ensure_exist, id), find_entry(&desired.file.ensure_not_exist, id));
        let serving = desired.directives.as_ref().is_some_and(|directives| directives.serving.contains(id));
        let admission =
            desired.directives.as_ref().map_or(Admission::Granted, |directives| directives.admission(id, POD));
        let current_calls: Vec<_> = self.calls.iter().filter(|call| call.epoch == self.state.epoch()).collect();
        let count = |kind| current_calls.iter().filter(|call| call.action.kind() == kind).count();
        assert!(id.as_str() != "base", "call about a base model: {action:?}");
        assert!(exist.is_some() != not_exist.is_some(), "id in both lists or in none: {action:?}");
        assert!(current_calls.iter().all(|call| call.action.id() != id), "two concurrent calls: {action:?}");
        if let Some(failed) =
            self.failed.get(id).filter(|failed| failed.kind == action.kind() && failed.process == self.known_identity())
        {
            let after = self.now.duration_since(failed.at);
            assert!(after >= SignedDuration::from_secs(1), "retried after {after:?}: {action:?}");
        }
        match action {
            AdapterCall::Load { source, .. } => {
                let entry = exist.or(not_exist.filter(|_| serving)).expect("not wanted");
                assert_eq!(*source, entry.source);
                assert_eq!(admission, Admission::Granted, "{action:?}");
                let confirmed =
                    self.server.as_ref().filter(|server| self.is_known(server)).map(|server| &server.confirmed_loads);
                assert!(!confirmed.is_some_and(|confirmed| confirmed.contains(id)), "already loaded: {action:?}");
                let max_parallel = self.config.policy.max_parallel;
                assert!(
                    current_calls.iter().filter(|call| self.is_recent_load(call)).count() < max_parallel,
                    "too many loads"
                );
                assert!(count(CallKind::Load) < 2 * max_parallel, "too many hanging loads");
                let hub = |call: &SimulatedCall| matches!(&call.action, AdapterCall::Load { from_hub: true, .. });
                assert!(
                    !is_hub_name(source) || !current_calls.iter().any(|call| hub(call)),
                    "two concurrent downloads"
                );
            }
            AdapterCall::Probe { .. } => {
                assert_eq!(admission, Admission::Granted, "{action:?}");
                assert_eq!(count(CallKind::Probe), 0, "two concurrent probes");
                assert!(self.config.policy.probe_enabled, "probe although disabled");
            }
            AdapterCall::Unload { .. } => {
                assert!(!serving, "unload of a serving id: {action:?}");
                assert!(
                    !current_calls.iter().any(|call| self.is_recent_load(call)),
                    "unload before a load: {action:?}"
                );
                assert!(not_exist.is_some() || admission == Admission::Rejected, "unload of a wanted id: {action:?}");
            }
        }
    }

    fn is_recent_load(&self, call: &SimulatedCall) -> bool {
        let age = self.now.duration_since(call.started_at);
        matches!(call.action, AdapterCall::Load { .. }) && age < SignedDuration::from_secs(10)
    }
}
