//! What operators may see that read documents late, as from a cache: every state there was, in order.

use crate::world::World;
use jiff::{SignedDuration, Timestamp};
use rollora_api::{rewrite::InferenceModelRewrite, rollout::Rollout};
use rollora_operator::ports::AdaptersDocument;
use std::sync::Arc;

/// All documents at one time.
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
    /// Takes note of the documents, where they have changed.
    pub(crate) fn record_snapshot(&mut self) {
        let Some(mut past) = self.history.take() else { return };
        if past.last().is_none_or(|last| !last.is_current(self)) {
            past.push(Arc::new(DocumentSnapshot::of(self)));
        }
        self.history = Some(past);
    }

    /// The number of the last state.
    pub(crate) fn latest_snapshot(&self) -> usize {
        self.history.as_ref().map_or(0, |past| past.len().saturating_sub(1))
    }

    /// The number of the state that somebody sees who hears of everything this late, and has seen `floor`.
    pub(crate) fn visible_snapshot(&self, lag: SignedDuration, floor: usize) -> usize {
        let past = self.history.as_deref().unwrap_or_default();
        let last = past.iter().rposition(|documents| documents.at + lag <= self.now).unwrap_or(0);
        last.max(floor)
    }
}
