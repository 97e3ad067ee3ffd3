//! Selection of the cached adapters to remove. Pure functions without I/O.

use jiff::Timestamp;
use std::{cmp::Reverse, collections::BTreeSet, path::PathBuf, time::Duration};

/// An adapter that was in use within this time stays, whatever its size. When vLLM has evicted an adapter from memory,
/// a request that still runs reads its files again, and the engine crashes if they are missing.
pub const MIN_RETENTION: Duration = Duration::from_hours(1);

/// How long and how many unused adapters are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// How long an adapter is kept after its last use; at least [`MIN_RETENTION`].
    pub retention: Duration,
    /// Maximum size of all adapters in bytes, including those in use; `None` means unlimited.
    pub max_bytes: Option<u64>,
}

/// A complete adapter in the cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedAdapter {
    /// Directory of the adapter.
    pub path: PathBuf,
    /// Size of all files, in bytes.
    pub size: u64,
    /// When the adapter was last found to be in use.
    pub last_wanted: Timestamp,
}

/// Selects the directories to remove: those unused for longer than the retention, and then the longest unused ones
/// until the rest fits `max_bytes`. Never selects one of `protected`, nor one used within [`MIN_RETENTION`].
pub fn select_evictions(
    cached: &[CachedAdapter],
    protected: &BTreeSet<PathBuf>,
    policy: &EvictionPolicy,
    now: Timestamp,
) -> Vec<PathBuf> {
    let idle = |it: &CachedAdapter| Duration::try_from(now.duration_since(it.last_wanted)).unwrap_or_default();
    let mut removable: Vec<_> =
        cached.iter().filter(|it| !protected.contains(&it.path) && idle(it) >= MIN_RETENTION).collect();
    removable.sort_by_key(|it| Reverse(idle(it)));
    let mut size = cached.iter().map(|it| it.size).sum::<u64>();
    let mut selected = Vec::new();
    for adapter in removable {
        let too_old = idle(adapter) >= policy.retention.max(MIN_RETENTION);
        if too_old || policy.max_bytes.is_some_and(|max_bytes| size > max_bytes) {
            size = size.saturating_sub(adapter.size);
            selected.push(adapter.path.clone());
        }
    }
    selected
}

#[cfg(test)]
mod tests;
