//! What an operator has done, as numbers: in all, for each Rollout that there is, and how long its writes took.
//!
//! Invariant: a Rollout that is gone leaves nothing here, so what is kept is bounded by the Rollouts that there are.

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

/// What an operator has done so far.
#[derive(Debug, Default)]
pub struct ReconcileStats {
    reconciles: AtomicU64,
    failures: AtomicU64,
    state: Mutex<StatsState>,
}

#[derive(Debug, Default)]
struct StatsState {
    rollouts: BTreeMap<RolloutKey, ReconcileCounts>,
    /// What somebody asked for, and when it was seen, until the rewrite says so.
    pending_intents: BTreeMap<RolloutKey, (IntentKind, Instant)>,
    write_durations: BTreeMap<&'static str, DurationHistogram>,
    intent_durations: BTreeMap<&'static str, DurationHistogram>,
}

/// How often one Rollout was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReconcileCounts {
    /// Reconciles that ended.
    pub finished: u64,
    /// Those of them that could not do what they decided, and are tried again.
    pub failed: u64,
}

/// The upper ends of the buckets of [`Timings`], in seconds; the last bucket has none.
pub const HISTOGRAM_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How long something took, each time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationHistogram {
    /// How often it took as long as each of [`BUCKETS`] at most and longer than the one before; last, how often longer.
    pub bucket_counts: [u64; HISTOGRAM_BUCKETS.len() + 1],
    /// All of it, in seconds.
    pub sum: f64,
}

impl DurationHistogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = HISTOGRAM_BUCKETS.partition_point(|end| *end < seconds);
        self.bucket_counts[bucket] += 1;
        self.sum += seconds;
    }

    /// How often it was done.
    pub fn count(&self) -> u64 {
        self.bucket_counts.iter().sum()
    }
}

/// What a write is called.
pub(crate) fn effect_name(effect: &Effect) -> &'static str {
    match effect {
        Effect::WriteRewrite(_) => "rewrite",
        Effect::SetFinalizer(_) => "finalizer",
        Effect::WriteAdapters { .. } => "adapters",
    }
}

impl ReconcileStats {
    /// Reconciles that ended.
    pub fn reconciles(&self) -> u64 {
        self.reconciles.load(Ordering::Relaxed)
    }

    /// Those of them that could not do what they decided, and are tried again.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How often one Rollout was looked at.
    pub fn for_rollout(&self, key: &RolloutKey) -> ReconcileCounts {
        self.state().rollouts.get(key).copied().unwrap_or_default()
    }

    /// By what was written (`status`, `rewrite`, `adapters`, `finalizer`): from the decision to the end of the write.
    pub fn write_durations(&self) -> BTreeMap<&'static str, DurationHistogram> {
        self.state().write_durations.clone()
    }

    /// By what a person asked for: from when the operator began to look at it until the rewrite said so.
    pub fn intent_durations(&self) -> BTreeMap<&'static str, DurationHistogram> {
        self.state().intent_durations.clone()
    }

    pub(crate) fn record_reconcile(&self, key: &RolloutKey, failed: bool) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(u64::from(failed), Ordering::Relaxed);
        let mut books = self.state();
        let rollout = books.rollouts.entry(key.clone()).or_default();
        rollout.finished += 1;
        rollout.failed += u64::from(failed);
    }

    /// Somebody asked for something, which the reconcile that began at `begun` has taken up.
    pub(crate) fn record_intent(&self, key: &RolloutKey, verb: IntentKind, begun: Instant) {
        let asked = &mut self.state().pending_intents;
        // The same once more is what came too late the first time.
        if asked.get(key).is_none_or(|(other, _)| *other != verb) {
            asked.insert(key.clone(), (verb, begun));
        }
    }

    /// This was written because of what was decided at `decided`.
    pub(crate) fn record_write(&self, key: &RolloutKey, what: &'static str, decided: Instant) {
        let now = Instant::now();
        let books = &mut *self.state();
        books.write_durations.entry(what).or_default().observe(now - decided);
        if what == "rewrite"
            && let Some((verb, begun)) = books.pending_intents.remove(key)
        {
            books.intent_durations.entry(verb.cli_name()).or_default().observe(now - begun);
        }
    }

    /// Nothing is left to be written: what somebody asked for needed no write, or has had it.
    pub(crate) fn clear_intent(&self, key: &RolloutKey) {
        self.state().pending_intents.remove(key);
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        let books = &mut *self.state();
        books.rollouts.remove(key);
        books.pending_intents.remove(key);
    }

    fn state(&self) -> MutexGuard<'_, StatsState> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
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
    fn a_rollout_that_is_gone_leaves_nothing() {
        let tally = ReconcileStats::default();
        for (name, failed) in [("a", false), ("a", true), ("b", false)] {
            tally.record_reconcile(&key(name), failed);
        }
        tally.record_intent(&key("a"), IntentKind::Abort, Instant::now());
        assert_eq!(tally.for_rollout(&key("a")), ReconcileCounts { finished: 2, failed: 1 });
        tally.forget(&key("a"));
        let books = tally.state();
        assert_eq!(books.rollouts.keys().collect::<Vec<_>>(), [&key("b")]);
        assert!(books.pending_intents.is_empty());
        drop(books);
        assert_eq!((tally.reconciles(), tally.failures()), (3, 1), "what was done stays done");
    }

    #[tokio::test(start_paused = true)]
    async fn an_intent_takes_until_the_rewrite_is_written_however_many_reconciles_that_needs() {
        let (tally, begun) = (ReconcileStats::default(), Instant::now());
        tally.record_intent(&key("a"), IntentKind::Abort, begun);
        tokio::time::advance(Duration::from_millis(10)).await;
        let decided = Instant::now();
        tally.record_write(&key("a"), "status", decided);
        tokio::time::advance(Duration::from_millis(30)).await;
        tally.record_write(&key("b"), "rewrite", decided);
        tally.record_write(&key("a"), "rewrite", decided);
        tally.record_write(&key("a"), "rewrite", decided);
        let intents = tally.intent_durations();
        assert_eq!(intents.keys().collect::<Vec<_>>(), [&"abort"]);
        assert_eq!((intents["abort"].count(), intents["abort"].bucket_counts[3]), (1, 1), "40 ms: {intents:?}");
        assert_eq!(tally.write_durations()["rewrite"].count(), 3);
        assert_eq!(tally.write_durations()["status"].bucket_counts[0], 1);
    }

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        let mut timings = DurationHistogram::default();
        for millis in [5, 6, 250, 30_001] {
            timings.observe(Duration::from_millis(millis));
        }
        assert_eq!(timings.bucket_counts, [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert!((timings.sum - 30.262).abs() < 1e-9);
    }
}
