//! When adapters were last used, as far as the server's metrics tell.
//!
//! Only our own clock counts, because the server's may be wrong: a use was not later than the reading that shows it, and
//! that is when it counts as. So an adapter whose last use is not later than some reading was not used from then until
//! that reading was asked for.

use super::{SidecarState, TrackedAdapter};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::ServerMetrics;
use std::collections::BTreeMap;

/// What was read of uses.
#[derive(Debug, Clone, Default)]
pub(super) struct AdapterUsageTracker {
    /// When the metrics were asked for that told of uses last.
    last_read_at: Option<Timestamp>,
    /// The metrics that were read last do not tell of uses.
    statistics_missing: bool,
    /// Of every id that the metrics name, also of those that nobody has listed yet.
    last_uses: BTreeMap<AdapterId, LastUse>,
}

#[derive(Debug, Clone, Copy)]
struct LastUse {
    /// When the reading was there that showed it.
    observed_at: Timestamp,
    /// As the server wrote it, to see whether it moves; none where it writes nothing any more.
    server_time: Option<Timestamp>,
}

impl AdapterUsageTracker {
    /// Takes in `metrics` that were asked for at `asked`.
    pub(super) fn record(&mut self, metrics: &ServerMetrics, asked: Timestamp, now: Timestamp) {
        self.statistics_missing = !metrics.has_statistics;
        if metrics.has_statistics {
            self.last_read_at = Some(asked);
        }
        for (id, last) in &mut self.last_uses {
            last.server_time = last.server_time.filter(|there| metrics.last_used.get(id) == Some(there));
        }
        for (id, there) in &metrics.last_used {
            if self.server_time(id).is_none() {
                self.last_uses.insert(id.clone(), LastUse { observed_at: now, server_time: Some(*there) });
            }
        }
    }

    /// Another process of the server answers: what was read before `asked` says nothing of it.
    pub(super) fn reset_for_process(&mut self, asked: Timestamp) {
        self.last_read_at = self.last_read_at.filter(|at| *at >= asked);
    }

    fn server_time(&self, id: &AdapterId) -> Option<Timestamp> {
        self.last_uses.get(id)?.server_time
    }
}

impl SidecarState {
    /// When the metrics were asked for that told of uses last: every use before that has been seen.
    pub fn usage_read_at(&self) -> Option<Timestamp> {
        self.usage.last_read_at
    }

    /// The last use of an adapter by our clock, or later.
    pub fn last_used(&self, id: &AdapterId) -> Option<Timestamp> {
        Some(self.usage.last_uses.get(id)?.observed_at)
    }

    /// The same as the server wrote it.
    pub fn server_last_used(&self, id: &AdapterId) -> Option<Timestamp> {
        self.usage.server_time(id)
    }

    /// Whether the adapter was used too lately for an unload, as far as is known. Where the server does not tell, the
    /// time since it became unwanted has to do.
    pub fn is_in_use(&self, id: &AdapterId, adapter: &TrackedAdapter, now: Timestamp) -> bool {
        let last = if self.usage.statistics_missing { adapter.unwanted_since } else { self.last_used(id) };
        last.is_some_and(|last| now < last + self.policy.unload_grace)
    }

    /// Forgets the uses of ids that neither the server nor anybody else names.
    pub(super) fn prune_usage(&mut self) {
        let adapters = &self.adapters;
        self.usage.last_uses.retain(|id, last| last.server_time.is_some() || adapters.contains_key(id));
    }
}
