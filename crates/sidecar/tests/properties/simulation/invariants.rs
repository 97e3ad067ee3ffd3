//! What must hold between any two events, and at the end.

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
    /// The table holds what the file in force says, and the status tells so.
    pub(crate) fn assert_converged(&self) {
        let Some(desired) = &self.desired else { return };
        let table = &self.server.as_ref().unwrap().adapters;
        let status = status(&self.state, self.now);
        assert!(self.calls.is_empty(), "calls go on without end");
        for name in IDS.iter().filter(|name| **name != "base") {
            let id = id(name);
            let (exist, not_exist) =
                (find_entry(&desired.file.ensure_exist, &id), find_entry(&desired.file.ensure_not_exist, &id));
            let serving = desired.directives.as_ref().is_some_and(|key| key.serving.contains(&id));
            let admission = desired.directives.as_ref().map_or(Admission::Granted, |key| key.admission(&id, POD));
            let adapter = self.state.adapters.get(&id);
            let held = adapter.is_some_and(|adapter| adapter.crash_hold.is_some());
            let tried = !self.crashing.contains(name) && !self.broken.contains(name) && !held;
            let context = || format!("{name}: {adapter:#?}\n{:#?}", status.adapter(&id));
            match (exist, not_exist, admission) {
                (Some(_), Some(_), _) | (None, None, _) | (Some(_), None, Admission::Waiting) => {
                    assert_eq!(table.get(&id), self.table_when_quiet.get(&id), "left alone\n{}", context());
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

    /// What was ready once stays so until it ends or hangs in a download, whatever else is listed, fails or goes.
    pub(super) fn assert_readiness_latched(&mut self, status: &SidecarStatus) {
        let readiness = &status.readiness;
        if readiness.ready {
            self.was_ready = self.known_identity();
        } else if self.state.is_up() && self.known_identity().is_some() && self.known_identity() == self.was_ready {
            assert_eq!(readiness.reason, "HubLoadBlocksServer", "{}", readiness.message);
        }
    }

    /// Nobody may count on what an unload that was asked for will take away.
    pub(super) fn assert_unloads_visible(&self) {
        let status = status(&self.state, self.now);
        for call in self.calls.iter().filter(|call| call.action.kind() == CallKind::Unload) {
            assert!(!status.is_resident(call.action.id()), "{:?}: {:#?}", call.action, self.state.adapters);
        }
    }

    /// Nothing is told of the server that it did not show.
    pub(super) fn assert_status_accurate(&self, status: &SidecarStatus) {
        if self.config.metrics_closed || !self.config.policy.probe_enabled {
            // It does not say which process it is, or nothing is proven.
            return;
        }
        let process: Option<u32> = status.server.as_ref().map(|server| server.start.parse().unwrap());
        if status.readiness.ready {
            assert!(process >= Some(self.min_ready_process), "ready by a process that is gone");
        }
        if let Some(server) = self.server.as_ref().filter(|server| Some(server.number) == process) {
            for id in IDS.map(id) {
                let known = !status.is_verified(&id) || server.verified.contains(&id);
                assert!(known, "{id} never answered: {:#?}", self.state.adapters.get(&id));
            }
        }
    }

    pub(super) fn assert_allowed(&self, action: &AdapterCall) {
        let desired = self.desired.as_ref().expect("no file, no call");
        let id = action.id();
        let (exist, not_exist) =
            (find_entry(&desired.file.ensure_exist, id), find_entry(&desired.file.ensure_not_exist, id));
        let serving = desired.directives.as_ref().is_some_and(|key| key.serving.contains(id));
        let admission = desired.directives.as_ref().map_or(Admission::Granted, |key| key.admission(id, POD));
        let present: Vec<_> = self.calls.iter().filter(|call| call.epoch == self.state.epoch()).collect();
        let count = |kind| present.iter().filter(|call| call.action.kind() == kind).count();
        assert!(id.as_str() != "base", "a base model: {action:?}");
        assert!(exist.is_some() != not_exist.is_some(), "in both lists or in none: {action:?}");
        assert!(present.iter().all(|call| call.action.id() != id), "two calls at once: {action:?}");
        if let Some(failed) =
            self.failed.get(id).filter(|failed| failed.kind == action.kind() && failed.process == self.known_identity())
        {
            let after = self.now.duration_since(failed.at);
            assert!(after >= SignedDuration::from_secs(1), "again after {after:?}: {action:?}");
        }
        match action {
            AdapterCall::Load { source, .. } => {
                let entry = exist.or(not_exist.filter(|_| serving)).expect("not wanted");
                assert_eq!(*source, entry.source);
                assert_eq!(admission, Admission::Granted, "{action:?}");
                let told =
                    self.server.as_ref().filter(|server| self.is_known(server)).map(|server| &server.confirmed_loads);
                assert!(!told.is_some_and(|told| told.contains(id)), "loaded already: {action:?}");
                let most = self.config.policy.max_parallel;
                assert!(present.iter().filter(|call| self.is_recent_load(call)).count() < most, "too many loads");
                assert!(count(CallKind::Load) < 2 * most, "too many loads hang");
                let hub = |call: &SimulatedCall| matches!(&call.action, AdapterCall::Load { from_hub: true, .. });
                assert!(!is_hub_name(source) || !present.iter().any(|call| hub(call)), "two downloads");
            }
            AdapterCall::Probe { .. } => {
                assert_eq!(admission, Admission::Granted, "{action:?}");
                assert_eq!(count(CallKind::Probe), 0, "two probes");
                assert!(self.config.policy.probe_enabled, "nobody wants proof");
            }
            AdapterCall::Unload { .. } => {
                assert!(!serving, "it serves: {action:?}");
                assert!(!present.iter().any(|call| self.is_recent_load(call)), "before a load: {action:?}");
                assert!(not_exist.is_some() || admission == Admission::Rejected, "wanted: {action:?}");
            }
        }
    }

    fn is_recent_load(&self, call: &SimulatedCall) -> bool {
        let age = self.now.duration_since(call.started_at);
        matches!(call.action, AdapterCall::Load { .. }) && age < SignedDuration::from_secs(10)
    }
}
