//! The delay after an id was listed again, for servers without a sidecar.
//!
//! Without a sidecar, only `/v1/models` shows what a server has, and nothing shows an unload that is still to come: the
//! tool that loads adapters there may be minutes behind the file. So an id that was under `ensureNotExist` counts only
//! after it has been listed again for [`RELIST_DELAY`].

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

/// How long an unload may still be pending.
const RELIST_DELAY: Duration = Duration::from_mins(3);
/// Ids that the status keeps in each list.
const MAX_IDS: usize = 100;

impl DecisionContext<'_> {
    /// Records ids that the file unlists, and ids that it lists again.
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
        let is_relevant = |id: &AdapterId| {
            let governed =
                self.spec.adapter.managed_pattern().is_some_and(|pattern| matches_pattern(pattern, id.as_str()));
            governed || known.contains(&id)
        };
        let now_unlisted = file.ensure_not_exist.iter().map(|entry| &entry.id).filter(|id| is_relevant(id));
        unlisted.extend(now_unlisted.cloned());
        // An id whose entry was removed may still be unloaded.
        unlisted.retain(|id| !is_listed(id));
        unlisted.sort_unstable();
        unlisted.dedup();
        unlisted.truncate(MAX_IDS);
        relisted.truncate(MAX_IDS);
    }
}

/// Returns a wait if the id was listed again less than [`RELIST_DELAY`] ago.
pub(super) fn recently_relisted(status: &RolloutStatus, id: &AdapterId) -> Option<Wait> {
    let entry = status.residency.relisted.iter().find(|entry| entry.id == *id)?;
    let end = text::after(entry.at, RELIST_DELAY);
    let message = format!(
        "{id} was under ensureNotExist until {}: without a sidecar, it can count as resident only from {} on",
        text::time(entry.at),
        text::time(end)
    );
    Some(Wait::until(reason::NOT_RESIDENT, end, message))
}
