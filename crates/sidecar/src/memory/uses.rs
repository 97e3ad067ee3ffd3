//! When adapters were last used, as far as the server's metrics tell.
//!
//! Only our own clock counts, because the server's may be wrong: a use was not later than the reading that shows it, and
//! that is when it counts as. So an adapter whose last use is not later than some reading was not used from then until
//! that reading was asked for.

use super::{Adapter, Memory};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::ServerMetrics;
use std::collections::BTreeMap;

/// What was read of uses.
#[derive(Debug, Clone, Default)]
pub(super) struct Uses {
    /// When the metrics were asked for that told of uses last.
    asked: Option<Timestamp>,
    /// The metrics that were read last do not tell of uses.
    untold: bool,
    /// Of every id that the metrics name, also of those that nobody has listed yet.
    last: BTreeMap<AdapterId, LastUse>,
}

#[derive(Debug, Clone, Copy)]
struct LastUse {
    /// When the reading was there that showed it.
    at: Timestamp,
    /// As the server wrote it, to see whether it moves; none where it writes nothing any more.
    there: Option<Timestamp>,
}

impl Uses {
    /// Takes in `metrics` that were asked for at `asked`.
    pub(super) fn read(&mut self, metrics: &ServerMetrics, asked: Timestamp, now: Timestamp) {
        self.untold = !metrics.has_statistics;
        if metrics.has_statistics {
            self.asked = Some(asked);
        }
        for (id, last) in &mut self.last {
            last.there = last.there.filter(|there| metrics.last_used.get(id) == Some(there));
        }
        for (id, there) in &metrics.last_used {
            if self.there(id).is_none() {
                self.last.insert(id.clone(), LastUse { at: now, there: Some(*there) });
            }
        }
    }

    /// Another process of the server answers: what was read before `asked` says nothing of it.
    pub(super) fn of_another_process(&mut self, asked: Timestamp) {
        self.asked = self.asked.filter(|at| *at >= asked);
    }

    fn there(&self, id: &AdapterId) -> Option<Timestamp> {
        self.last.get(id)?.there
    }
}

impl Memory {
    /// When the metrics were asked for that told of uses last: every use before that has been seen.
    pub fn uses_read_at(&self) -> Option<Timestamp> {
        self.uses.asked
    }

    /// The last use of an adapter by our clock, or later.
    pub fn last_used(&self, id: &AdapterId) -> Option<Timestamp> {
        Some(self.uses.last.get(id)?.at)
    }

    /// The same as the server wrote it.
    pub fn last_used_there(&self, id: &AdapterId) -> Option<Timestamp> {
        self.uses.there(id)
    }

    /// Whether the adapter was used too lately for an unload, as far as is known. Where the server does not tell, the
    /// time since it became unwanted has to do.
    pub fn in_use(&self, id: &AdapterId, adapter: &Adapter, now: Timestamp) -> bool {
        let last = if self.uses.untold { adapter.unwanted_since } else { self.last_used(id) };
        last.is_some_and(|last| now < last + self.policy.unload_grace)
    }

    /// Forgets the uses of ids that neither the server nor anybody else names.
    pub(super) fn prune_uses(&mut self) {
        let adapters = &self.adapters;
        self.uses.last.retain(|id, last| last.there.is_some() || adapters.contains_key(id));
    }
}
