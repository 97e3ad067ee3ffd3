//! Every past state of the documents, in order, for operators that read them with a lag, as from a cache.

use crate::world::World;
use jiff::{SignedDuration, Timestamp};
use rollora_api::{rewrite::InferenceModelRewrite, rollout::Rollout};
use rollora_operator::ports::AdaptersDocument;
use std::sync::Arc;

/// All documents at one point in time.
#[derive(Debug, Clone)]
pub(crate) struct DocumentSnapshot {
    at: Timestamp,
    rollouts: Vec<(Rollout, u64)>,
    pub(crate) rewrites: Vec<(InferenceModelRewrite, u64)>,
    pub(crate) adapters: (AdaptersDocument, u64),
}

impl DocumentSnapshot {
    pub(crate) fn of(world: &World) -> Self {
        Self {
            at: world.now,
            rollouts: world.rollouts().map(|(rollout, version)| (rollout.clone(), version)).collect(),
            rewrites: world.rewrites.clone(),
            adapters: (world.adapters.clone(), world.adapters_version),
        }
    }

    pub(crate) fn rollout(&self, name: &str) -> Option<(Rollout, u64)> {
        self.rollouts.iter().find(|(rollout, _)| rollout.metadata.name == name).cloned()
    }

    fn is_current(&self, world: &World) -> bool {
        let rewrites = || world.rewrites.iter().map(|(_, version)| version);
        self.rollouts.iter().map(|(_, version)| *version).eq(world.rollouts().map(|(_, version)| version))
            && self.adapters.1 == world.adapters_version
            && self.rewrites.iter().map(|(_, version)| version).eq(rewrites())
    }
}

impl World {
    /// Records the documents if they have changed.
    pub(crate) fn record_snapshot(&mut self) {
        let Some(mut snapshots) = self.history.take() else { return };
        if snapshots.last().is_none_or(|last| !last.is_current(self)) {
            snapshots.push(Arc::new(DocumentSnapshot::of(self)));
        }
        self.history = Some(snapshots);
    }

    /// Returns the number of the latest snapshot.
    pub(crate) fn latest_snapshot(&self) -> usize {
        self.history.as_ref().map_or(0, |snapshots| snapshots.len().saturating_sub(1))
    }

    /// Returns the number of the snapshot that an operator with this lag reads, if it has already read `floor`.
    pub(crate) fn visible_snapshot(&self, lag: SignedDuration, floor: usize) -> usize {
        let snapshots = self.history.as_deref().unwrap_or_default();
        let last = snapshots.iter().rposition(|documents| documents.at + lag <= self.now).unwrap_or(0);
        last.max(floor)
    }
}
