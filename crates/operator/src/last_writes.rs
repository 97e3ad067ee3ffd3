//! Results of the last writes for each Rollout that the next reconcile cannot learn from the stored objects.

use crate::ports::RolloutKey;
use rollora_api::names::Sequence;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Last write results of all Rollouts, by key.
#[derive(Debug, Default)]
pub(crate) struct LastWriteResults(Mutex<BTreeMap<RolloutKey, LastWriteResult>>);

#[derive(Debug, Default)]
struct LastWriteResult {
    /// Answer to the last write, if it was refused.
    refusal: Option<String>,
    /// Sequence of an accepted rewrite that no reconcile has observed yet.
    unobserved_sequence: Option<Sequence>,
}

impl LastWriteResults {
    /// Returns why the last write was refused, if it was.
    pub(crate) fn refusal(&self, key: &RolloutKey) -> Option<String> {
        self.lock().get(key)?.refusal.clone()
    }

    /// Records that a write was refused.
    pub(crate) fn record_refusal(&self, key: &RolloutKey, why: String) {
        self.lock().entry(key.clone()).or_default().refusal = Some(why);
    }

    /// Records that all writes of a reconcile succeeded.
    pub(crate) fn clear_refusal(&self, key: &RolloutKey) {
        if let Some(last) = self.lock().get_mut(key) {
            last.refusal = None;
        }
    }

    /// Records that a rewrite with this sequence was accepted.
    pub(crate) fn record_sequence(&self, key: &RolloutKey, sequence: Sequence) {
        self.lock().entry(key.clone()).or_default().unobserved_sequence = Some(sequence);
    }

    /// Returns the sequence of a rewrite that was accepted since the last call, and clears it.
    pub(crate) fn take_sequence(&self, key: &RolloutKey) -> Option<Sequence> {
        self.lock().get_mut(key)?.unobserved_sequence.take()
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, LastWriteResult>> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
