//! A new file, or new words of the operator.

use super::{Adapter, Hold, Memory};
use crate::wish::{Goal, Standing, Wish, wishes};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, sidecar_status::ConfigStatus};

impl Memory {
    /// Takes `desired` into force for the server named `name`.
    pub fn desire(&mut self, desired: &DesiredAdapters, name: &str, now: Timestamp) {
        self.config =
            Some(ConfigStatus { hash: Some(desired.hash.clone()), operator_key: desired.key.is_some(), error: None });
        let mut wishes = wishes(desired, name);
        let mut newly_unwanted = false;
        for (id, adapter) in &mut self.adapters {
            newly_unwanted |= adapter.wish_changes(wishes.remove(id), now);
        }
        for (id, wish) in wishes {
            let mut adapter = Adapter::default();
            newly_unwanted |= adapter.wish_changes(Some(wish), now);
            self.adapters.insert(id, adapter);
        }
        if newly_unwanted {
            // Whether it is still in use is asked at once, not at the next turn.
            self.demand_metrics();
        }
        self.prune();
    }
}

impl Adapter {
    /// Takes the new wish; true where the adapter has just become unwanted.
    fn wish_changes(&mut self, wish: Option<Wish>, now: Timestamp) -> bool {
        match (&self.wish, &wish) {
            (Some(old), Some(new)) if old.source == new.source && old.listed == new.listed => {
                if old.standing != new.standing {
                    self.start_afresh();
                }
                let answered = matches!(new.standing, Standing::Free | Standing::Admitted | Standing::Rejected);
                if answered && self.hold == Some(Hold::Operator) {
                    self.hold = None;
                }
            }
            (None, None) => {}
            // Another entry, or the same under another list: somebody has thought about it.
            _ => {
                self.start_afresh();
                self.deaths = 0;
                self.hold = None;
            }
        }
        let was_unwanted = self.goal() == Goal::Absent;
        self.wish = wish;
        let unwanted = self.goal() == Goal::Absent;
        if !unwanted {
            self.unwanted_since = None;
        } else if !was_unwanted {
            self.unwanted_since = Some(now);
        }
        unwanted && !was_unwanted
    }
}
