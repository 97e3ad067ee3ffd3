//! A new file, or new words of the operator.

use super::{CrashHold, FetchState, SidecarState, TrackedAdapter};
use crate::spec::{AdapterGoal, AdapterSpec, LoadPermission, adapter_specs};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, sidecar_status::ConfigStatus};

impl SidecarState {
    /// Takes `desired` into force for the server named `name`.
    pub fn set_desired(&mut self, desired: &DesiredAdapters, name: &str, now: Timestamp) {
        self.config = Some(ConfigStatus {
            hash: Some(desired.hash.clone()),
            operator_directives: desired.directives.is_some(),
            error: None,
        });
        let mut wishes = adapter_specs(desired, name, &self.source_policy);
        for (id, adapter) in &mut self.adapters {
            adapter.set_spec(wishes.remove(id), now);
        }
        for (id, wish) in wishes {
            self.adapters.entry(id).or_default().set_spec(Some(wish), now);
        }
        self.restore_adapters();
        self.prune();
    }
}

impl TrackedAdapter {
    fn set_spec(&mut self, wish: Option<AdapterSpec>, now: Timestamp) {
        match (&self.spec, &wish) {
            (Some(old), Some(new)) if old.source == new.source && old.membership == new.membership => {
                if old.permission != new.permission {
                    self.reset_failures();
                    self.fetch.reset_failures();
                }
                let answered = matches!(
                    new.permission,
                    LoadPermission::Ungoverned | LoadPermission::Admitted | LoadPermission::Rejected
                );
                if answered && self.crash_hold == Some(CrashHold::AwaitOperator) {
                    self.crash_hold = None;
                }
            }
            (None, None) => {}
            // Another entry, or the same under another list: somebody has thought about it.
            _ => {
                self.reset_failures();
                self.fetch.reset_failures();
                self.server_crashes = 0;
                self.crash_hold = None;
            }
        }
        let source = |wish: &Option<AdapterSpec>| wish.as_ref().map(|wish| wish.source.clone());
        if source(&self.spec) != source(&wish) {
            self.fetch = FetchState::default();
        }
        self.spec = wish;
        if !self.wants_loading() {
            self.fetch.active = None;
        }
        let unwanted = self.goal() == AdapterGoal::Absent;
        self.unwanted_since = unwanted.then(|| self.unwanted_since.unwrap_or(now));
    }
}
