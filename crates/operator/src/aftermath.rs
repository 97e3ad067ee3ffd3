//! What the last writes for each Rollout came to, where nothing else would tell the next look of it.

use crate::ports::RolloutKey;
use rollora_api::names::Sequence;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// For each Rollout what its last writes came to.
#[derive(Debug, Default)]
pub(crate) struct Aftermath(Mutex<BTreeMap<RolloutKey, Last>>);

#[derive(Debug, Default)]
struct Last {
    /// What the last write was answered, where it was refused.
    refused: Option<String>,
    /// The stamp of a rewrite that was taken and not looked at since.
    taken: Option<Sequence>,
}

impl Aftermath {
    /// Why the last write was refused, where it was.
    pub(crate) fn refused(&self, key: &RolloutKey) -> Option<String> {
        self.all().get(key)?.refused.clone()
    }

    /// A write was refused.
    pub(crate) fn refuse(&self, key: &RolloutKey, why: String) {
        self.all().entry(key.clone()).or_default().refused = Some(why);
    }

    /// Everything was written.
    pub(crate) fn settle(&self, key: &RolloutKey) {
        if let Some(last) = self.all().get_mut(key) {
            last.refused = None;
        }
    }

    /// A rewrite with this stamp was taken.
    pub(crate) fn take(&self, key: &RolloutKey, stamp: Sequence) {
        self.all().entry(key.clone()).or_default().taken = Some(stamp);
    }

    /// The stamp of a rewrite that was taken since this was asked last.
    pub(crate) fn taken(&self, key: &RolloutKey) -> Option<Sequence> {
        self.all().get_mut(key)?.taken.take()
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.all().remove(key);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, Last>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
