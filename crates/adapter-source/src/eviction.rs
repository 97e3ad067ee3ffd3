//! What of a folder may go. Pure.

use jiff::Timestamp;
use std::{cmp::Reverse, collections::BTreeSet, path::PathBuf, time::Duration};

/// What was wanted within this time stays, whatever the budget: requests that still run read files again after an
/// eviction, and vLLM's engine dies when they are gone.
pub const MIN_RETENTION: Duration = Duration::from_hours(1);

/// How much is kept of what nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// This long after it was last wanted; at least [`LEAST`].
    pub retention: Duration,
    /// At most so many bytes in all, the wanted ones counted; none means any number.
    pub max_bytes: Option<u64>,
}

/// A fetched adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedAdapter {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was last seen to be wanted.
    pub last_wanted: Timestamp,
}

/// The folders to remove: what was unwanted for too long, and then, the longest unwanted first, as much as the budget
/// asks for. Never one of `protected`.
pub fn select_evictions(
    cached: &[CachedAdapter],
    protected: &BTreeSet<PathBuf>,
    policy: &EvictionPolicy,
    now: Timestamp,
) -> Vec<PathBuf> {
    let idle = |held: &CachedAdapter| Duration::try_from(now.duration_since(held.last_wanted)).unwrap_or_default();
    let mut removable: Vec<_> =
        cached.iter().filter(|held| !protected.contains(&held.path) && idle(held) >= MIN_RETENTION).collect();
    removable.sort_by_key(|held| Reverse(idle(held)));
    let mut size = cached.iter().map(|held| held.size).sum::<u64>();
    let mut condemned = Vec::new();
    for held in removable {
        let too_old = idle(held) >= policy.retention.max(MIN_RETENTION);
        if too_old || policy.max_bytes.is_some_and(|largest| size > largest) {
            size = size.saturating_sub(held.size);
            condemned.push(held.path.clone());
        }
    }
    condemned
}

#[cfg(test)]
mod tests;
