//! The text of `/metrics`: made anew for each scrape from what is in memory, so that a Rollout that is gone has no series.
//!
//! Bounded: each Rollout has the same few series, whatever it does; no adapter has one of its own.

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
    tally::{BUCKETS, Tally, Timings},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

/// What the text speaks of.
#[derive(Debug)]
pub(crate) struct Scene {
    /// Whether this replica holds the Lease.
    pub(crate) leads: bool,
    /// Kinds of which news may be missing, and why in a word.
    pub(crate) problems: Vec<(String, String)>,
    /// Every Rollout.
    pub(crate) rollouts: Vec<Arc<Rollout>>,
    pub(crate) now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: String,
}

/// Which Rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    namespace: String,
    name: String,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Info {
    namespace: String,
    name: String,
    model: String,
    stable: String,
    desired: String,
}

type Fraction = Gauge<f64, AtomicU64>;

/// What there is of each Rollout.
#[derive(Debug, Default)]
struct Rollouts {
    by_phase: Family<OfPhase, Gauge>,
    info: Family<Info, Gauge>,
    phase: Family<InPhase, Gauge>,
    phase_seconds: Family<Of, Fraction>,
    step: Family<Of, Gauge>,
    steps: Family<Of, Gauge>,
    weight: Family<Of, Fraction>,
    resident: Family<Of, Gauge>,
    ready: Family<Of, Gauge>,
    reconciles: Family<Of, Counter>,
    errors: Family<Of, Counter>,
}

/// The text, in the format of OpenMetrics.
pub(crate) fn text(scene: &Scene, tally: &Tally) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let leader = Gauge::<i64>::default();
    leader.set(i64::from(scene.leads));
    registry.register("rollora_operator_leader", "Whether this replica holds the Lease", leader);
    for (name, help, number) in [
        ("rollora_operator_reconciles", "Rollouts that were looked at", tally.reconciles()),
        (
            "rollora_operator_reconcile_failures",
            "Those that are tried again because something failed",
            tally.failures(),
        ),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(number);
        registry.register(name, help, counter);
    }
    let problems = Family::<OfKind, Gauge>::default();
    for (kind, reason) in &scene.problems {
        problems.get_or_create(&OfKind { kind: kind.clone(), reason: reason.clone() }).set(1);
    }
    registry.register("rollora_operator_watch_problem", "Kinds of which news may be missing now", problems);
    registry.register(
        "rollora_operator_write_seconds",
        "From a decision to the end of each write that it needed, by what was written",
        Histograms { label: "effect", timings: tally.writes() },
    );
    registry.register(
        "rollora_operator_intent_seconds",
        "From when an intent was seen until the rewrite said so, by what was asked",
        Histograms { label: "verb", timings: tally.intents() },
    );
    let rollouts = Rollouts::default();
    for rollout in &scene.rollouts {
        rollouts.add(rollout, tally, scene.now);
    }
    rollouts.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Rollouts {
    fn add(&self, rollout: &Rollout, tally: &Tally, now: Timestamp) {
        let (namespace, name) = (rollout.metadata.namespace.clone(), rollout.metadata.name.clone());
        let reconciles = tally.of(&RolloutKey { namespace: namespace.clone(), name: name.clone() });
        let of = Of { namespace: namespace.unwrap_or_default(), name };
        let unwritten = RolloutStatus::default();
        let status = rollout.status.as_ref().unwrap_or(&unwritten);
        let phase = format!("{:?}", status.phase);
        self.by_phase.get_or_create(&OfPhase { phase: phase.clone() }).inc();
        self.info.get_or_create(&info(&of, rollout, status)).set(1);
        let in_phase = InPhase { namespace: of.namespace.clone(), name: of.name.clone(), phase };
        self.phase.get_or_create(&in_phase).set(1);
        if let Some(since) = status.phase_since {
            self.phase_seconds.get_or_create(&of).set(now.duration_since(since).as_secs_f64().max(0.0));
        }
        if let Some(step) = &status.step {
            self.step.get_or_create(&of).set(i64::from(step.index));
            self.steps.get_or_create(&of).set(i64::try_from(status.steps.len()).unwrap_or(i64::MAX));
        }
        self.weight.get_or_create(&of).set(share_of_desired(status));
        self.resident.get_or_create(&of).set(i64::from(status.residency.resident));
        self.ready.get_or_create(&of).set(i64::from(status.residency.ready));
        self.reconciles.get_or_create(&of).inc_by(reconciles.ended);
        self.errors.get_or_create(&of).inc_by(reconciles.failed);
    }

    fn register(self, registry: &mut Registry) {
        registry.register("rollora_operator_rollouts", "Rollouts by phase", self.by_phase);
        registry.register("rollora_rollout_info", "Which adapters a Rollout is about", self.info);
        registry.register("rollora_rollout_phase", "The phase that a Rollout is in", self.phase);
        registry.register("rollora_rollout_phase_seconds", "For how long it has been in that", self.phase_seconds);
        registry.register("rollora_rollout_step", "Steps that are done", self.step);
        registry.register("rollora_rollout_steps", "All steps", self.steps);
        registry.register("rollora_rollout_weight", "What part of the requests the desired adapter gets", self.weight);
        registry.register(
            "rollora_rollout_resident_servers",
            "Ready servers that have the desired adapter, when it was last looked",
            self.resident,
        );
        registry.register(
            "rollora_rollout_ready_servers",
            "Ready servers of the pool, when it was last looked",
            self.ready,
        );
        registry.register("rollora_rollout_reconciles", "How often a Rollout was looked at", self.reconciles);
        registry.register("rollora_rollout_errors", "How often that is tried again because it failed", self.errors);
    }
}

fn info(of: &Of, rollout: &Rollout, status: &RolloutStatus) -> Info {
    let id = |id: &Option<AdapterId>| id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
    Info {
        namespace: of.namespace.clone(),
        name: of.name.clone(),
        model: rollout.spec.model.as_str().to_owned(),
        stable: id(&status.revision.stable),
        desired: id(&status.revision.desired),
    }
}

/// From 0 to 1.
fn share_of_desired(status: &RolloutStatus) -> f64 {
    let desired = status.revision.desired.as_ref();
    let (mut weight, mut total) = (0.0, 0.0);
    for target in &status.weights.desired {
        total += f64::from(target.weight);
        weight += if Some(&target.id) == desired { f64::from(target.weight) } else { 0.0 };
    }
    if total > 0.0 { weight / total } else { 0.0 }
}

/// A histogram for each value of one label.
#[derive(Debug)]
struct Histograms {
    label: &'static str,
    timings: BTreeMap<&'static str, Timings>,
}

impl EncodeMetric for Histograms {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (value, timings) in &self.timings {
            let ends = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = ends.zip(timings.counts).collect();
            let labels = [(self.label, *value)];
            let mut each = encoder.encode_family(&labels)?;
            each.encode_histogram::<NoLabelSet>(timings.sum, timings.count(), &buckets, None)?;
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

    fn scene(rollouts: Vec<Rollout>) -> Scene {
        let rollouts = rollouts.into_iter().map(Arc::new).collect();
        Scene { leads: true, problems: Vec::new(), rollouts, now: "2026-01-01T00:01:30Z".parse().unwrap() }
    }

    fn lines(text: &str, about: &str) -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#') && line.contains(about)).map(str::to_owned).collect()
    }

    #[test]
    fn each_rollout_has_its_series() {
        let text = text(&scene(vec![rollout("chat")]), &Tally::default()).unwrap();
        assert_eq!(
            lines(&text, "name=\"chat\""),
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
        assert_eq!(lines(&text, "rollora_operator_rollouts"), ["rollora_operator_rollouts{phase=\"Paused\"} 1"]);
    }

    #[test]
    fn the_series_of_a_rollout_go_with_it() {
        let tally = Tally::default();
        let both = text(&scene(vec![rollout("one"), rollout("two")]), &tally).unwrap();
        let left = text(&scene(vec![rollout("two")]), &tally).unwrap();
        assert_eq!(lines(&both, "name=\"one\"").len(), lines(&both, "name=\"two\"").len());
        assert_eq!((lines(&left, "\"one\"").len(), lines(&left, "\"two\"")), (0, lines(&both, "\"two\"")));
    }

    #[test]
    fn a_rollout_without_a_status_is_told_of_too() {
        let blank = Rollout { status: None, ..rollout("chat") };
        let text = text(&scene(vec![blank]), &Tally::default()).unwrap();
        assert_eq!(lines(&text, "phase=\"Pending\"").len(), 2, "{text}");
        assert_eq!(lines(&text, "rollora_rollout_phase_seconds").len(), 0, "nobody knows yet: {text}");
    }

    #[test]
    fn times_are_told_as_histograms() {
        let mut timings = Timings::default();
        (timings.counts[0], timings.counts[12], timings.sum) = (2, 1, 40.5);
        let mut registry = Registry::default();
        let timings = BTreeMap::from([("rewrite", timings)]);
        registry.register("seconds", "Times", Histograms { label: "effect", timings });
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
            assert!(lines(&text, "seconds_").iter().any(|it| it == line), "{line}:\n{text}");
        }
    }
}
