//! Selection of cached adapters to remove, as a pure function of their size, age and use.

use jiff::Timestamp;
use std::{cmp::Reverse, collections::BTreeSet, path::PathBuf, time::Duration};

/// Minimum age since an adapter was last wanted before it may be removed, whatever the policy. vLLM reads the files
/// again after it evicted an adapter that running requests use, and its engine dies if the files are missing.
pub const MIN_RETENTION: Duration = Duration::from_hours(1);

/// Limits on cached adapters that are no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// How long an adapter is kept after it was last wanted; at least [`MIN_RETENTION`].
    pub retention: Duration,
    /// Maximum total size in bytes, including adapters that are still wanted; `None` means no limit.
    pub max_bytes: Option<u64>,
}

/// A fetched adapter in the cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedAdapter {
    /// Folder that contains the adapter's files.
    pub path: PathBuf,
    /// Total size of the adapter's files, in bytes.
    pub size: u64,
    /// Time at which the adapter was last wanted.
    pub last_wanted: Timestamp,
}

/// Returns the folders to remove: adapters beyond the retention time, then, longest unwanted first, as many as are
/// needed to meet the size limit. Never returns a folder in `protected`.
pub fn select_evictions(
    cached: &[CachedAdapter],
    protected: &BTreeSet<PathBuf>,
    policy: &EvictionPolicy,
    now: Timestamp,
) -> Vec<PathBuf> {
    let idle =
        |adapter: &CachedAdapter| Duration::try_from(now.duration_since(adapter.last_wanted)).unwrap_or_default();
    let mut removable: Vec<_> =
        cached.iter().filter(|adapter| !protected.contains(&adapter.path) && idle(adapter) >= MIN_RETENTION).collect();
    removable.sort_by_key(|adapter| Reverse(idle(adapter)));
    let mut size = cached.iter().map(|adapter| adapter.size).sum::<u64>();
    let mut evicted = Vec::new();
    for adapter in removable {
        let is_expired = idle(adapter) >= policy.retention.max(MIN_RETENTION);
        if is_expired || policy.max_bytes.is_some_and(|max_bytes| size > max_bytes) {
            size = size.saturating_sub(adapter.size);
            evicted.push(adapter.path.clone());
        }
    }
    evicted
}

#[cfg(test)]
mod tests;
