//! Where no sidecar runs, only `/v1/models` tells what a server has, and nothing tells of an unload that is still to come:
//! whoever keeps the list there may be minutes behind. So an id that stood under `ensureNotExist` counts only when it has
//! been listed again for a while.

use super::DecisionContext;
use crate::{observed::AdapterListing, text, wait::Wait};
use rollora_api::{
    condition::reason,
    names::AdapterId,
    operator_directives::matches_pattern,
    rollout::{
        RolloutStatus,
        spec::ResidencyProof,
        status::{RelistedAdapter, Residency},
    },
};
use std::time::Duration;

/// How long an unload may still be on its way.
const RELIST_DELAY: Duration = Duration::from_mins(3);
/// Ids that are remembered.
const MAX_IDS: usize = 100;

impl DecisionContext<'_> {
    /// Takes note of what the file unlists, and of what it lists again.
    pub(super) fn record_listings(&self, status: &mut RolloutStatus) {
        let Residency { unlisted, relisted, .. } = &mut status.residency;
        if self.spec.residency != ResidencyProof::Registered {
            unlisted.clear();
            relisted.clear();
            return;
        }
        let Ok(file) = self.adapters_file() else { return };
        let is_listed = |id: &AdapterId| AdapterListing::of(id, file) == AdapterListing::EnsureExist;
        relisted.retain(|entry| is_listed(&entry.id) && self.now < text::after(entry.at, RELIST_DELAY));
        let again =
            unlisted.iter().filter(|id| is_listed(id)).map(|id| RelistedAdapter { id: id.clone(), at: self.now });
        relisted.extend(again);
        let known = status.revision.stable.iter().chain(&status.revision.desired);
        let known: Vec<&AdapterId> = known.chain(status.retired.iter().map(|entry| &entry.id)).collect();
        let concerns_us = |id: &AdapterId| {
            let governed =
                self.spec.adapter.managed_pattern().is_some_and(|pattern| matches_pattern(pattern, id.as_str()));
            governed || known.contains(&id)
        };
        let now_unlisted = file.ensure_not_exist.iter().map(|entry| &entry.id).filter(|id| concerns_us(id));
        unlisted.extend(now_unlisted.cloned());
        // One whose entry is taken away is still on its way out.
        unlisted.retain(|id| !is_listed(id));
        unlisted.sort_unstable();
        unlisted.dedup();
        unlisted.truncate(MAX_IDS);
        relisted.truncate(MAX_IDS);
    }
}

/// What has been listed again too short a while ago.
pub(super) fn recently_relisted(status: &RolloutStatus, id: &AdapterId) -> Option<Wait> {
    let entry = status.residency.relisted.iter().find(|entry| entry.id == *id)?;
    let end = text::after(entry.at, RELIST_DELAY);
    let message = format!(
        "{id} was under ensureNotExist until {}: where no sidecar runs, it counts from {}",
        text::time(entry.at),
        text::time(end)
    );
    Some(Wait::until(reason::NOT_RESIDENT, end, message))
}
