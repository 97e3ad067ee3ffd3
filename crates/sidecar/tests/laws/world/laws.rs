//! What must hold between any two events, and at the end.

use super::{Call, IDS, POD, World, files::find, id};
use jiff::SignedDuration;
use rollora_api::{operator_directives::Admission, sidecar_status::SidecarStatus};
use rollora_sidecar::{
    decide::Action,
    memory::CallKind,
    source::{is_hub_name, same_source},
    status::status,
};

impl World {
    /// The table holds what the file in force says, and the status tells so.
    pub(crate) fn assert_the_file_is_true(&self) {
        let Some(desired) = &self.desired else { return };
        let table = &self.server.as_ref().unwrap().adapters;
        let status = status(&self.memory, self.now);
        assert!(self.calls.is_empty(), "calls go on without end");
        for name in IDS.iter().filter(|name| **name != "base") {
            let id = id(name);
            let (exist, not_exist) = (find(&desired.file.ensure_exist, &id), find(&desired.file.ensure_not_exist, &id));
            let serving = desired.directives.as_ref().is_some_and(|key| key.serving.contains(&id));
            let admission = desired.directives.as_ref().map_or(Admission::Granted, |key| key.admission(&id, POD));
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

    /// What was ready once stays so until it ends or hangs in a download, whatever else is listed, fails or goes.
    pub(super) fn assert_latched(&mut self, status: &SidecarStatus) {
        let readiness = &status.readiness;
        if readiness.ready {
            self.was_ready = self.identity();
        } else if self.memory.is_up() && self.identity().is_some() && self.identity() == self.was_ready {
            assert_eq!(readiness.reason, "HubLoadBlocksServer", "{}", readiness.message);
        }
    }

    /// Nobody may count on what an unload that was asked for will take away.
    pub(super) fn assert_no_unload_is_hidden(&self) {
        let status = status(&self.memory, self.now);
        for call in self.calls.iter().filter(|call| call.action.kind() == CallKind::Unload) {
            assert!(!status.is_resident(call.action.id()), "{:?}: {:#?}", call.action, self.memory.adapters);
        }
    }

    /// Nothing is told of the server that it did not show.
    pub(super) fn assert_truth(&self, status: &SidecarStatus) {
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

    pub(super) fn assert_allowed(&self, action: &Action) {
        let desired = self.desired.as_ref().expect("no file, no call");
        let id = action.id();
        let (exist, not_exist) = (find(&desired.file.ensure_exist, id), find(&desired.file.ensure_not_exist, id));
        let serving = desired.directives.as_ref().is_some_and(|key| key.serving.contains(id));
        let admission = desired.directives.as_ref().map_or(Admission::Granted, |key| key.admission(id, POD));
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

    fn is_young_load(&self, call: &Call) -> bool {
        let age = self.now.duration_since(call.since);
        matches!(call.action, Action::Load { .. }) && age < SignedDuration::from_secs(10)
    }
}
