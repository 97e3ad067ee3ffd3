//! Applies a new adapters file or new operator directives.

use super::{CrashHold, FetchState, SidecarState, TrackedAdapter};
use crate::spec::{AdapterGoal, AdapterSpec, LoadPermission, adapter_specs};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, sidecar_status::ConfigStatus};

impl SidecarState {
    /// Applies `desired` for the server named `server_name`.
    pub fn set_desired(&mut self, desired: &DesiredAdapters, server_name: &str, now: Timestamp) {
        self.config = Some(ConfigStatus {
            hash: Some(desired.hash.clone()),
            operator_directives: desired.directives.is_some(),
            error: None,
        });
        let mut specs = adapter_specs(desired, server_name, &self.source_policy);
        for (id, adapter) in &mut self.adapters {
            adapter.set_spec(specs.remove(id), now);
        }
        for (id, spec) in specs {
            self.adapters.entry(id).or_default().set_spec(Some(spec), now);
        }
        self.restore_adapters();
        self.prune();
    }
}

impl TrackedAdapter {
    fn set_spec(&mut self, spec: Option<AdapterSpec>, now: Timestamp) {
        match (&self.spec, &spec) {
            (Some(old), Some(new)) if old.source == new.source && old.membership == new.membership => {
                if old.permission != new.permission {
                    self.reset_failures();
                    self.fetch.reset_failures();
                }
                let operator_decided = matches!(
                    new.permission,
                    LoadPermission::Ungoverned | LoadPermission::Admitted | LoadPermission::Rejected
                );
                if operator_decided && self.crash_hold == Some(CrashHold::AwaitOperator) {
                    self.crash_hold = None;
                }
            }
            (None, None) => {}
            // Another entry, or the same id in another list: a person has changed it, so it gets a fresh start.
            _ => {
                self.reset_failures();
                self.fetch.reset_failures();
                self.server_crashes = 0;
                self.crash_hold = None;
            }
        }
        let source = |spec: &Option<AdapterSpec>| spec.as_ref().map(|spec| spec.source.clone());
        if source(&self.spec) != source(&spec) {
            self.fetch = FetchState::default();
        }
        self.spec = spec;
        if !self.wants_loading() {
            self.fetch.active = None;
        }
        let must_be_absent = self.goal() == AdapterGoal::Absent;
        self.unwanted_since = must_be_absent.then(|| self.unwanted_since.unwrap_or(now));
    }
}
