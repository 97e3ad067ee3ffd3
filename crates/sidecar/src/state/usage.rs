//! Tracks when adapters were last used, by the server's metrics.
//!
//! Only the sidecar's own clock counts, because the server's may be wrong: a use counts as of the read that shows it,
//! which is never earlier than the use. So an adapter was idle from its recorded last use until the request of the last
//! read.

use super::{SidecarState, TrackedAdapter};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::ServerMetrics;
use std::collections::BTreeMap;

/// The last use of each adapter, and when the metrics were last read.
#[derive(Debug, Clone, Default)]
pub(super) struct AdapterUsageTracker {
    /// When the last metrics with usage statistics were requested.
    last_read_at: Option<Timestamp>,
    /// Whether the last metrics lack usage statistics.
    statistics_missing: bool,
    /// By every id in the metrics, including ids that the file does not list yet.
    last_uses: BTreeMap<AdapterId, LastUse>,
}

#[derive(Debug, Clone, Copy)]
struct LastUse {
    /// When the read that first showed this use ended.
    observed_at: Timestamp,
    /// The time by the server, to detect changes; `None` if the metrics no longer report it.
    server_time: Option<Timestamp>,
}

impl AdapterUsageTracker {
    /// Records `metrics` that were requested at `requested_at`.
    pub(super) fn record(&mut self, metrics: &ServerMetrics, requested_at: Timestamp, now: Timestamp) {
        self.statistics_missing = !metrics.has_statistics;
        if metrics.has_statistics {
            self.last_read_at = Some(requested_at);
        }
        for (id, last_use) in &mut self.last_uses {
            last_use.server_time = last_use.server_time.filter(|time| metrics.last_used.get(id) == Some(time));
        }
        for (id, server_time) in &metrics.last_used {
            if self.server_time(id).is_none() {
                self.last_uses.insert(id.clone(), LastUse { observed_at: now, server_time: Some(*server_time) });
            }
        }
    }

    /// Another server process answers: reads that were requested before `requested_at` do not count for it.
    pub(super) fn reset_for_process(&mut self, requested_at: Timestamp) {
        self.last_read_at = self.last_read_at.filter(|at| *at >= requested_at);
    }

    fn server_time(&self, id: &AdapterId) -> Option<Timestamp> {
        self.last_uses.get(id)?.server_time
    }
}

impl SidecarState {
    /// Returns when the last metrics with usage statistics were requested: every use before that is recorded.
    pub fn usage_read_at(&self) -> Option<Timestamp> {
        self.usage.last_read_at
    }

    /// Returns the last use of an adapter by the sidecar's clock; never earlier than the actual use.
    pub fn last_used(&self, id: &AdapterId) -> Option<Timestamp> {
        Some(self.usage.last_uses.get(id)?.observed_at)
    }

    /// Returns the last use by the server's clock, as its metrics report it.
    pub fn server_last_used(&self, id: &AdapterId) -> Option<Timestamp> {
        self.usage.server_time(id)
    }

    /// Returns whether the adapter was used within the unload grace. Without usage statistics, the time since it became
    /// unwanted counts instead.
    pub fn is_in_use(&self, id: &AdapterId, adapter: &TrackedAdapter, now: Timestamp) -> bool {
        let last_use = if self.usage.statistics_missing { adapter.unwanted_since } else { self.last_used(id) };
        last_use.is_some_and(|last_use| now < last_use + self.policy.unload_grace)
    }

    /// Drops the uses of ids that neither the metrics, the file nor the model list name.
    pub(super) fn prune_usage(&mut self) {
        let adapters = &self.adapters;
        self.usage.last_uses.retain(|id, last_use| last_use.server_time.is_some() || adapters.contains_key(id));
    }
}
