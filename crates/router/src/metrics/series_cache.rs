//! Cache of all series, with eviction of those that neither a rule nor a request holds any more.

use super::{
    DecisionLabels, MIN_UNUSED_SERIES, MetricFamilies, RuleTargetMetrics, STATUS_CLASSES, TargetLabels, TargetMetrics,
};
use crate::usage::TargetUsage;
use std::{
    array,
    collections::HashMap,
    sync::{Arc, OnceLock},
};

/// All series that were created and not evicted.
#[derive(Debug, Default)]
pub(super) struct SeriesCache {
    series: HashMap<(TargetLabels, DecisionLabels), Arc<RuleTargetMetrics>>,
    targets: HashMap<TargetLabels, Arc<TargetMetrics>>,
    /// Above this number of series, unused ones are evicted.
    eviction_threshold: usize,
}

impl SeriesCache {
    pub(super) fn get_or_create(
        &mut self,
        decision: DecisionLabels,
        labels: TargetLabels,
        families: &MetricFamilies,
        usage: impl FnOnce() -> Arc<TargetUsage>,
    ) -> Arc<RuleTargetMetrics> {
        let target_metrics = Arc::clone(self.targets.entry(labels.clone()).or_insert_with_key(|labels| {
            Arc::new(TargetMetrics {
                families: families.clone(),
                labels: labels.clone(),
                responses: array::from_fn(|_| OnceLock::new()),
                response_seconds: OnceLock::new(),
                in_flight: OnceLock::new(),
                usage: usage(),
            })
        }));
        Arc::clone(self.series.entry((labels, decision)).or_insert_with_key(|(_, labels)| {
            Arc::new(RuleTargetMetrics {
                families: families.clone(),
                labels: labels.clone(),
                decisions: OnceLock::new(),
                target_metrics,
            })
        }))
    }

    /// Evicts unused series if the number of series has doubled since the last eviction.
    pub(super) fn evict_unused(&mut self, families: &MetricFamilies) {
        if self.series.len() <= self.eviction_threshold {
            return;
        }
        self.series.retain(|(_, labels), series| {
            let in_use = Arc::strong_count(series) > 1;
            if !in_use {
                families.decisions.remove(labels);
            }
            in_use
        });
        self.targets.retain(|labels, target_metrics| {
            let in_use = Arc::strong_count(target_metrics) > 1;
            if !in_use {
                families.response_seconds.remove(labels);
                families.in_flight.remove(labels);
                for code in STATUS_CLASSES {
                    families.responses.remove(&labels.with_code(code));
                }
            }
            in_use
        });
        self.eviction_threshold = 2 * self.series.len() + MIN_UNUSED_SERIES;
    }
}
