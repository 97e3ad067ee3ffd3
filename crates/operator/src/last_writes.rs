//! What the last writes for each Rollout came to, where nothing else would tell the next look of it.

use crate::ports::RolloutKey;
use rollora_api::names::Sequence;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// For each Rollout what its last writes came to.
#[derive(Debug, Default)]
pub(crate) struct LastWriteResults(Mutex<BTreeMap<RolloutKey, LastWriteResult>>);

#[derive(Debug, Default)]
struct LastWriteResult {
    /// What the last write was answered, where it was refused.
    refusal: Option<String>,
    /// The stamp of a rewrite that was taken and not looked at since.
    unobserved_stamp: Option<Sequence>,
}

impl LastWriteResults {
    /// Why the last write was refused, where it was.
    pub(crate) fn refusal(&self, key: &RolloutKey) -> Option<String> {
        self.lock().get(key)?.refusal.clone()
    }

    /// A write was refused.
    pub(crate) fn record_refusal(&self, key: &RolloutKey, why: String) {
        self.lock().entry(key.clone()).or_default().refusal = Some(why);
    }

    /// Everything was written.
    pub(crate) fn clear_refusal(&self, key: &RolloutKey) {
        if let Some(last) = self.lock().get_mut(key) {
            last.refusal = None;
        }
    }

    /// A rewrite with this stamp was taken.
    pub(crate) fn record_stamp(&self, key: &RolloutKey, stamp: Sequence) {
        self.lock().entry(key.clone()).or_default().unobserved_stamp = Some(stamp);
    }

    /// The stamp of a rewrite that was taken since this was asked last.
    pub(crate) fn take_stamp(&self, key: &RolloutKey) -> Option<Sequence> {
        self.lock().get_mut(key)?.unobserved_stamp.take()
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, LastWriteResult>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
