//! Which series exist, and which of them no rule and no request holds any more.

use super::{
    DecisionLabels, MIN_UNUSED_SERIES, MetricFamilies, RuleTargetMetrics, STATUS_CLASSES, TargetLabels, TargetMetrics,
};
use crate::usage::TargetUsage;
use std::{
    array,
    collections::HashMap,
    sync::{Arc, OnceLock},
};

/// Every series that was handed out and not dropped again.
#[derive(Debug, Default)]
pub(super) struct SeriesCache {
    series: HashMap<(TargetLabels, DecisionLabels), Arc<RuleTargetMetrics>>,
    targets: HashMap<TargetLabels, Arc<TargetMetrics>>,
    /// From so many series on it is worth looking for departed ones.
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
        let tally = Arc::clone(self.targets.entry(labels.clone()).or_insert_with_key(|labels| {
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
                target_metrics: tally,
            })
        }))
    }

    /// Drops the departed series once there are as many of them as of the others.
    pub(super) fn evict_unused(&mut self, families: &MetricFamilies) {
        if self.series.len() <= self.eviction_threshold {
            return;
        }
        self.series.retain(|(_, labels), series| {
            let held = Arc::strong_count(series) > 1;
            if !held {
                families.decisions.remove(labels);
            }
            held
        });
        self.targets.retain(|labels, tally| {
            let held = Arc::strong_count(tally) > 1;
            if !held {
                families.response_seconds.remove(labels);
                families.in_flight.remove(labels);
                for code in STATUS_CLASSES {
                    families.responses.remove(&labels.with_code(code));
                }
            }
            held
        });
        self.eviction_threshold = 2 * self.series.len() + MIN_UNUSED_SERIES;
    }
}
