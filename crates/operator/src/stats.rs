//! Counters and duration histograms of an operator, in total and per Rollout.
//!
//! Invariant: entries of a deleted Rollout are removed, so the size is bounded by the number of existing Rollouts.

use crate::ports::RolloutKey;
use rollora_api::rollout::IntentKind;
use rollora_plan::effect::Effect;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Statistics of one operator since its start.
#[derive(Debug, Default)]
pub struct ReconcileStats {
    reconciles: AtomicU64,
    failures: AtomicU64,
    state: Mutex<StatsState>,
}

#[derive(Debug, Default)]
struct StatsState {
    rollouts: BTreeMap<RolloutKey, ReconcileCounts>,
    /// The intent that is being applied, and when its reconcile began; removed once the rewrite is written.
    pending_intents: BTreeMap<RolloutKey, (IntentKind, Instant)>,
    write_durations: BTreeMap<&'static str, DurationHistogram>,
    intent_durations: BTreeMap<&'static str, DurationHistogram>,
}

/// Numbers of reconciles of one Rollout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReconcileCounts {
    /// Reconciles that ended, including failed ones.
    pub finished: u64,
    /// Reconciles that could not apply their decision and are retried.
    pub failed: u64,
}

/// Upper bounds of the buckets of [`DurationHistogram`], in seconds; the last bucket is unbounded.
pub const HISTOGRAM_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Histogram of the durations of one operation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationHistogram {
    /// Observations per bucket, not cumulative; the last one counts those above every bound of [`HISTOGRAM_BUCKETS`].
    pub bucket_counts: [u64; HISTOGRAM_BUCKETS.len() + 1],
    /// Sum of all observed durations, in seconds.
    pub sum: f64,
}

impl DurationHistogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = HISTOGRAM_BUCKETS.partition_point(|end| *end < seconds);
        self.bucket_counts[bucket] += 1;
        self.sum += seconds;
    }

    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.bucket_counts.iter().sum()
    }
}

/// Returns the metric label of an effect.
pub(crate) fn effect_name(effect: &Effect) -> &'static str {
    match effect {
        Effect::WriteRewrite(_) => "rewrite",
        Effect::SetFinalizer(_) => "finalizer",
        Effect::WriteAdapters { .. } => "adapters",
    }
}

impl ReconcileStats {
    /// Returns the number of reconciles that ended, including failed ones.
    pub fn reconciles(&self) -> u64 {
        self.reconciles.load(Ordering::Relaxed)
    }

    /// Returns the number of reconciles that could not apply their decision and are retried.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Returns the reconcile counts of one Rollout; zeros if it is unknown.
    pub fn for_rollout(&self, key: &RolloutKey) -> ReconcileCounts {
        self.state().rollouts.get(key).copied().unwrap_or_default()
    }

    /// Returns the time from a decision to the end of each write, by effect (`status`, `rewrite`, `adapters`,
    /// `finalizer`).
    pub fn write_durations(&self) -> BTreeMap<&'static str, DurationHistogram> {
        self.state().write_durations.clone()
    }

    /// Returns the time from the first reconcile of an intent to the write of its rewrite, by intent.
    pub fn intent_durations(&self) -> BTreeMap<&'static str, DurationHistogram> {
        self.state().intent_durations.clone()
    }

    pub(crate) fn record_reconcile(&self, key: &RolloutKey, failed: bool) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(u64::from(failed), Ordering::Relaxed);
        let mut state = self.state();
        let rollout = state.rollouts.entry(key.clone()).or_default();
        rollout.finished += 1;
        rollout.failed += u64::from(failed);
    }

    /// Records that the reconcile that began at `begun` accepted an intent.
    pub(crate) fn record_intent(&self, key: &RolloutKey, verb: IntentKind, begun: Instant) {
        let pending = &mut self.state().pending_intents;
        // The same intent again means that an earlier reconcile could not finish its writes: keep the first time.
        if pending.get(key).is_none_or(|(other, _)| *other != verb) {
            pending.insert(key.clone(), (verb, begun));
        }
    }

    /// Records the end of a write that was decided at `decided`.
    pub(crate) fn record_write(&self, key: &RolloutKey, what: &'static str, decided: Instant) {
        let now = Instant::now();
        let state = &mut *self.state();
        state.write_durations.entry(what).or_default().observe(now - decided);
        if what == "rewrite"
            && let Some((verb, begun)) = state.pending_intents.remove(key)
        {
            state.intent_durations.entry(verb.cli_name()).or_default().observe(now - begun);
        }
    }

    /// Drops the pending intent: it needed no write, or its write is done.
    pub(crate) fn clear_intent(&self, key: &RolloutKey) {
        self.state().pending_intents.remove(key);
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        let state = &mut *self.state();
        state.rollouts.remove(key);
        state.pending_intents.remove(key);
    }

    fn state(&self) -> MutexGuard<'_, StatsState> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RolloutKey {
        RolloutKey { namespace: None, name: name.to_owned() }
    }

    #[test]
    fn deleted_rollout_leaves_no_entries() {
        let stats = ReconcileStats::default();
        for (name, failed) in [("a", false), ("a", true), ("b", false)] {
            stats.record_reconcile(&key(name), failed);
        }
        stats.record_intent(&key("a"), IntentKind::Abort, Instant::now());
        assert_eq!(stats.for_rollout(&key("a")), ReconcileCounts { finished: 2, failed: 1 });
        stats.forget(&key("a"));
        let kept = stats.state();
        assert_eq!(kept.rollouts.keys().collect::<Vec<_>>(), [&key("b")]);
        assert!(kept.pending_intents.is_empty());
        drop(kept);
        assert_eq!((stats.reconciles(), stats.failures()), (3, 1), "totals keep the counts of deleted Rollouts");
    }

    #[tokio::test(start_paused = true)]
    async fn intent_duration_spans_reconciles_until_rewrite_is_written() {
        let (stats, begun) = (ReconcileStats::default(), Instant::now());
        stats.record_intent(&key("a"), IntentKind::Abort, begun);
        tokio::time::advance(Duration::from_millis(10)).await;
        let decided = Instant::now();
        stats.record_write(&key("a"), "status", decided);
        tokio::time::advance(Duration::from_millis(30)).await;
        stats.record_write(&key("b"), "rewrite", decided);
        stats.record_write(&key("a"), "rewrite", decided);
        stats.record_write(&key("a"), "rewrite", decided);
        let intents = stats.intent_durations();
        assert_eq!(intents.keys().collect::<Vec<_>>(), [&"abort"]);
        assert_eq!((intents["abort"].count(), intents["abort"].bucket_counts[3]), (1, 1), "40 ms: {intents:?}");
        assert_eq!(stats.write_durations()["rewrite"].count(), 3);
        assert_eq!(stats.write_durations()["status"].bucket_counts[0], 1);
    }

    #[test]
    fn duration_falls_into_first_bucket_that_holds_it() {
        let mut histogram = DurationHistogram::default();
        for millis in [5, 6, 250, 30_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.bucket_counts, [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert!((histogram.sum - 30.262).abs() < 1e-9);
    }
}
