//! A new file, or new words of the operator.

use super::{Adapter, Fetching, Hold, Memory};
use crate::wish::{Goal, Standing, Wish, wishes};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, sidecar_status::ConfigStatus};

impl Memory {
    /// Takes `desired` into force for the server named `name`.
    pub fn desire(&mut self, desired: &DesiredAdapters, name: &str, now: Timestamp) {
        self.config = Some(ConfigStatus {
            hash: Some(desired.hash.clone()),
            operator_directives: desired.directives.is_some(),
            error: None,
        });
        let mut wishes = wishes(desired, name, &self.sources);
        for (id, adapter) in &mut self.adapters {
            adapter.wish_changes(wishes.remove(id), now);
        }
        for (id, wish) in wishes {
            self.adapters.entry(id).or_default().wish_changes(Some(wish), now);
        }
        self.recall_adapters();
        self.prune();
    }
}

impl Adapter {
    fn wish_changes(&mut self, wish: Option<Wish>, now: Timestamp) {
        match (&self.wish, &wish) {
            (Some(old), Some(new)) if old.source == new.source && old.listed == new.listed => {
                if old.standing != new.standing {
                    self.start_afresh();
                    self.fetch.start_afresh();
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
                self.fetch.start_afresh();
                self.deaths = 0;
                self.hold = None;
            }
        }
        let source = |wish: &Option<Wish>| wish.as_ref().map(|wish| wish.source.clone());
        if source(&self.wish) != source(&wish) {
            self.fetch = Fetching::default();
        }
        self.wish = wish;
        if !self.wants_loading() {
            self.fetch.under_way = None;
        }
        let unwanted = self.goal() == Goal::Absent;
        self.unwanted_since = unwanted.then(|| self.unwanted_since.unwrap_or(now));
    }
}
