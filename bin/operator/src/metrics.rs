//! Renders `/metrics` for each scrape from the caches and counters, so that a deleted Rollout has no series.
//!
//! Bounded: each Rollout has the same number of series, and no adapter has one of its own.

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rollora_api::{
    names::AdapterId,
    rollout::{Rollout, RolloutStatus},
};
use rollora_operator::{
    ports::RolloutKey,
    stats::{DurationHistogram, HISTOGRAM_BUCKETS, ReconcileStats},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

/// Input of one scrape.
#[derive(Debug)]
pub(crate) struct MetricsSnapshot {
    /// Whether this replica holds the Lease.
    pub(crate) is_leader: bool,
    /// Kinds whose changes may be missing, with the reason.
    pub(crate) watch_problems: Vec<(String, String)>,
    /// Every Rollout that can be parsed.
    pub(crate) rollouts: Vec<Arc<Rollout>>,
    pub(crate) now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchProblemLabels {
    kind: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutLabels {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutPhaseLabels {
    namespace: String,
    name: String,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutInfoLabels {
    namespace: String,
    name: String,
    model: String,
    stable: String,
    desired: String,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// Metrics with one series per Rollout, or per phase.
#[derive(Debug, Default)]
struct RolloutMetrics {
    by_phase: Family<PhaseLabels, Gauge>,
    info: Family<RolloutInfoLabels, Gauge>,
    phase: Family<RolloutPhaseLabels, Gauge>,
    phase_seconds: Family<RolloutLabels, FloatGauge>,
    step: Family<RolloutLabels, Gauge>,
    steps: Family<RolloutLabels, Gauge>,
    weight: Family<RolloutLabels, FloatGauge>,
    resident: Family<RolloutLabels, Gauge>,
    ready: Family<RolloutLabels, Gauge>,
    reconciles: Family<RolloutLabels, Counter>,
    errors: Family<RolloutLabels, Counter>,
}

/// Renders the metrics in the OpenMetrics text format.
pub(crate) fn encode(snapshot: &MetricsSnapshot, stats: &ReconcileStats) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let leader = Gauge::<i64>::default();
    leader.set(i64::from(snapshot.is_leader));
    registry.register("rollora_operator_leader", "Whether this replica holds the Lease", leader);
    for (name, help, number) in [
        ("rollora_operator_reconciles", "Reconciles finished", stats.reconciles()),
        ("rollora_operator_reconcile_failures", "Reconciles that failed and are retried", stats.failures()),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(number);
        registry.register(name, help, counter);
    }
    let problems = Family::<WatchProblemLabels, Gauge>::default();
    for (kind, reason) in &snapshot.watch_problems {
        problems.get_or_create(&WatchProblemLabels { kind: kind.clone(), reason: reason.clone() }).set(1);
    }
    registry.register("rollora_operator_watch_problem", "Watches that currently fail, by kind and reason", problems);
    registry.register(
        "rollora_operator_write_seconds",
        "Time from a decision to the end of each of its writes, by effect",
        Histograms { label: "effect", histograms: stats.write_durations() },
    );
    registry.register(
        "rollora_operator_intent_seconds",
        "Time from the first reconcile of an intent until its rewrite was written, by intent",
        Histograms { label: "verb", histograms: stats.intent_durations() },
    );
    let rollouts = RolloutMetrics::default();
    for rollout in &snapshot.rollouts {
        rollouts.add(rollout, stats, snapshot.now);
    }
    rollouts.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl RolloutMetrics {
    fn add(&self, rollout: &Rollout, stats: &ReconcileStats, now: Timestamp) {
        let (namespace, name) = (rollout.metadata.namespace.clone(), rollout.metadata.name.clone());
        let reconciles = stats.for_rollout(&RolloutKey { namespace: namespace.clone(), name: name.clone() });
        let labels = RolloutLabels { namespace: namespace.unwrap_or_default(), name };
        let unwritten = RolloutStatus::default();
        let observed = rollout.status.as_ref().unwrap_or(&unwritten);
        let phase = format!("{:?}", observed.phase);
        self.by_phase.get_or_create(&PhaseLabels { phase: phase.clone() }).inc();
        self.info.get_or_create(&info_labels(&labels, rollout, observed)).set(1);
        let in_phase = RolloutPhaseLabels { namespace: labels.namespace.clone(), name: labels.name.clone(), phase };
        self.phase.get_or_create(&in_phase).set(1);
        if let Some(since) = observed.phase_since {
            self.phase_seconds.get_or_create(&labels).set(now.duration_since(since).as_secs_f64().max(0.0));
        }
        if let Some(step) = &observed.step {
            self.step.get_or_create(&labels).set(i64::from(step.index));
            self.steps.get_or_create(&labels).set(i64::try_from(observed.steps.len()).unwrap_or(i64::MAX));
        }
        self.weight.get_or_create(&labels).set(desired_weight_fraction(observed));
        self.resident.get_or_create(&labels).set(i64::from(observed.residency.resident));
        self.ready.get_or_create(&labels).set(i64::from(observed.residency.ready));
        self.reconciles.get_or_create(&labels).inc_by(reconciles.finished);
        self.errors.get_or_create(&labels).inc_by(reconciles.failed);
    }

    fn register(self, registry: &mut Registry) {
        registry.register("rollora_operator_rollouts", "Rollouts by phase", self.by_phase);
        registry.register("rollora_rollout_info", "Model, stable adapter and desired adapter of a Rollout", self.info);
        registry.register("rollora_rollout_phase", "Current phase of a Rollout", self.phase);
        registry.register("rollora_rollout_phase_seconds", "Time in the current phase", self.phase_seconds);
        registry.register("rollora_rollout_step", "Steps completed in the current revision", self.step);
        registry.register("rollora_rollout_steps", "Steps of the current revision", self.steps);
        registry.register(
            "rollora_rollout_weight",
            "Fraction of requests for the desired adapter, 0 to 1",
            self.weight,
        );
        registry.register(
            "rollora_rollout_resident_servers",
            "Ready servers that have the desired adapter, as last observed",
            self.resident,
        );
        registry.register("rollora_rollout_ready_servers", "Ready servers of the pool, as last observed", self.ready);
        registry.register("rollora_rollout_reconciles", "Reconciles finished for a Rollout", self.reconciles);
        registry.register("rollora_rollout_errors", "Reconciles of a Rollout that failed and are retried", self.errors);
    }
}

fn info_labels(labels: &RolloutLabels, rollout: &Rollout, status: &RolloutStatus) -> RolloutInfoLabels {
    let id = |id: &Option<AdapterId>| id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
    RolloutInfoLabels {
        namespace: labels.namespace.clone(),
        name: labels.name.clone(),
        model: rollout.spec.model.as_str().to_owned(),
        stable: id(&status.revision.stable),
        desired: id(&status.revision.desired),
    }
}

/// Returns the desired adapter's part of the weights, from 0 to 1.
fn desired_weight_fraction(status: &RolloutStatus) -> f64 {
    let desired = status.revision.desired.as_ref();
    let (mut weight, mut total) = (0.0, 0.0);
    for target in &status.weights.desired {
        total += f64::from(target.weight);
        weight += if Some(&target.id) == desired { f64::from(target.weight) } else { 0.0 };
    }
    if total > 0.0 { weight / total } else { 0.0 }
}

/// One histogram per value of a label.
#[derive(Debug)]
struct Histograms {
    label: &'static str,
    histograms: BTreeMap<&'static str, DurationHistogram>,
}

impl EncodeMetric for Histograms {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (value, histogram) in &self.histograms {
            let bounds = HISTOGRAM_BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.bucket_counts).collect();
            let labels = [(self.label, *value)];
            let mut family = encoder.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout(name: &str) -> Rollout {
        serde_json::from_value(json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": "prod"},
            "spec": {
                "model": "chat", "poolRef": {"name": "pool"},
                "adapter": {"follow": {"pattern": "chat-v*"}}, "adaptersRef": {"name": "map"},
            },
            "status": {
                "phase": "Paused", "phaseSince": "2026-01-01T00:00:00Z",
                "revision": {"number": 2, "stable": "chat-v1", "desired": "chat-v2"},
                "steps": [{"setWeight": 25}, {"pause": {}}, {"setWeight": 100}],
                "step": {"index": 1, "state": "Pausing", "enteredAt": "2026-01-01T00:00:00Z"},
                "weights": {"desired": [{"id": "chat-v1", "weight": 75}, {"id": "chat-v2", "weight": 25}]},
                "residency": {"resident": 2, "ready": 3},
            },
        }))
        .unwrap()
    }

    fn snapshot(rollouts: Vec<Rollout>) -> MetricsSnapshot {
        let rollouts = rollouts.into_iter().map(Arc::new).collect();
        MetricsSnapshot {
            is_leader: true,
            watch_problems: Vec::new(),
            rollouts,
            now: "2026-01-01T00:01:30Z".parse().unwrap(),
        }
    }

    fn samples(text: &str, about: &str) -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#') && line.contains(about)).map(str::to_owned).collect()
    }

    #[test]
    fn rollout_has_all_its_series() {
        let text = encode(&snapshot(vec![rollout("chat")]), &ReconcileStats::default()).unwrap();
        assert_eq!(
            samples(&text, "name=\"chat\""),
            [
                "rollora_rollout_info{namespace=\"prod\",name=\"chat\",model=\"chat\",stable=\"chat-v1\",desired=\"chat-v2\"} 1",
                "rollora_rollout_phase{namespace=\"prod\",name=\"chat\",phase=\"Paused\"} 1",
                "rollora_rollout_phase_seconds{namespace=\"prod\",name=\"chat\"} 90.0",
                "rollora_rollout_step{namespace=\"prod\",name=\"chat\"} 1",
                "rollora_rollout_steps{namespace=\"prod\",name=\"chat\"} 3",
                "rollora_rollout_weight{namespace=\"prod\",name=\"chat\"} 0.25",
                "rollora_rollout_resident_servers{namespace=\"prod\",name=\"chat\"} 2",
                "rollora_rollout_ready_servers{namespace=\"prod\",name=\"chat\"} 3",
                "rollora_rollout_reconciles_total{namespace=\"prod\",name=\"chat\"} 0",
                "rollora_rollout_errors_total{namespace=\"prod\",name=\"chat\"} 0",
            ]
        );
        assert_eq!(samples(&text, "rollora_operator_rollouts"), ["rollora_operator_rollouts{phase=\"Paused\"} 1"]);
    }

    #[test]
    fn deleted_rollout_has_no_series() {
        let stats = ReconcileStats::default();
        let before = encode(&snapshot(vec![rollout("one"), rollout("two")]), &stats).unwrap();
        let after = encode(&snapshot(vec![rollout("two")]), &stats).unwrap();
        assert_eq!(samples(&before, "name=\"one\"").len(), samples(&before, "name=\"two\"").len());
        assert_eq!((samples(&after, "\"one\"").len(), samples(&after, "\"two\"")), (0, samples(&before, "\"two\"")));
    }

    #[test]
    fn rollout_without_a_status_is_included() {
        let blank = Rollout { status: None, ..rollout("chat") };
        let text = encode(&snapshot(vec![blank]), &ReconcileStats::default()).unwrap();
        assert_eq!(samples(&text, "phase=\"Pending\"").len(), 2, "{text}");
        assert_eq!(samples(&text, "rollora_rollout_phase_seconds").len(), 0, "the phase has no start time: {text}");
    }

    #[test]
    fn durations_are_rendered_as_histograms() {
        let mut histogram = DurationHistogram::default();
        (histogram.bucket_counts[0], histogram.bucket_counts[12], histogram.sum) = (2, 1, 40.5);
        let mut registry = Registry::default();
        let histogram = BTreeMap::from([("rewrite", histogram)]);
        registry.register("seconds", "Times", Histograms { label: "effect", histograms: histogram });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("# TYPE seconds histogram"), "{text}");
        for line in [
            "seconds_sum{effect=\"rewrite\"} 40.5",
            "seconds_count{effect=\"rewrite\"} 3",
            "seconds_bucket{le=\"0.005\",effect=\"rewrite\"} 2",
            "seconds_bucket{le=\"30.0\",effect=\"rewrite\"} 2",
            "seconds_bucket{le=\"+Inf\",effect=\"rewrite\"} 3",
        ] {
            assert!(samples(&text, "seconds_").iter().any(|sample| sample == line), "{line}:\n{text}");
        }
    }
}
