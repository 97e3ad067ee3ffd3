//! What one watch has told, and what this process itself has written: the newer of both.
//!
//! Invariants:
//! - What is read is never older than the last write that ended well.
//! - What a write left open, or is older than what somebody else has read, is not read before the source was asked.
//!
//! Versions of one kind are compared as numbers, which API servers promise. One that is no number counts as newer than
//! anything: then the watch has the last word.

use crate::{api_error::ApiError, watch::WatchEvent};
use std::collections::{BTreeMap, BTreeSet};

/// A namespace and a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl NamespacedName {
    /// Of these two words.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object, its name and its version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CacheItem<T> {
    pub(crate) name: NamespacedName,
    pub(crate) version: String,
    pub(crate) value: T,
}

/// One object on the shelf.
#[derive(Debug, Clone, PartialEq)]
struct CacheEntry<T> {
    version: String,
    value: T,
    /// Written here, and not told by the watch yet.
    ahead_of_watch: bool,
}

/// All objects of one watch.
#[derive(Debug)]
pub(crate) struct ObjectCache<T> {
    entries: BTreeMap<NamespacedName, CacheEntry<T>>,
    /// Whether the watch has told everything once.
    synced: bool,
    /// Why news may be missing now.
    problem: Option<ApiError>,
    /// The highest version that the watch has told.
    watched_version: u64,
    /// Objects that the source has to be asked about.
    stale: BTreeSet<NamespacedName>,
}

impl<T> Default for ObjectCache<T> {
    fn default() -> Self {
        let (entries, doubtful) = (BTreeMap::new(), BTreeSet::new());
        Self { entries, synced: false, problem: None, watched_version: 0, stale: doubtful }
    }
}

/// Whether the shelf can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SyncState {
    /// Nothing was told yet.
    Pending,
    /// Everything was told; an outage since then does not matter.
    Synced,
    /// Nothing was told, because of this.
    Failed(ApiError),
}

impl<T: PartialEq> ObjectCache<T> {
    /// Takes in what the watch tells; gives the names of what is different now.
    pub(crate) fn handle_event(
        &mut self,
        news: Result<WatchEvent<CacheItem<T>>, ApiError>,
    ) -> BTreeSet<NamespacedName> {
        let news = match news {
            Ok(news) => news,
            Err(error) => {
                if matches!(error, ApiError::NotFound(_)) {
                    // The kind itself is gone: what was told of it is no longer true.
                    self.synced = false;
                }
                self.problem = Some(error);
                return BTreeSet::new();
            }
        };
        self.problem = None;
        match news {
            WatchEvent::Reset(items) => self.replace_all(items),
            WatchEvent::Apply(item) => {
                self.watched_version = self.watched_version.max(parse_version(&item.version));
                self.apply(item).into_iter().collect()
            }
            WatchEvent::Delete(item) => {
                self.watched_version = self.watched_version.max(parse_version(&item.version));
                let unversioned = item.version.is_empty();
                if unversioned && self.entries.get(&item.name).is_some_and(|entry| entry.ahead_of_watch) {
                    // What went may be older than what was written here.
                    self.stale.insert(item.name.clone());
                    return BTreeSet::from([item.name]);
                }
                let older = |entry: &CacheEntry<T>| !is_newer(&entry.version, &item.version);
                if self.entries.get(&item.name).is_some_and(older) {
                    self.entries.remove(&item.name);
                    return BTreeSet::from([item.name]);
                }
                BTreeSet::new()
            }
        }
    }

    fn replace_all(&mut self, items: Vec<CacheItem<T>>) -> BTreeSet<NamespacedName> {
        self.synced = true;
        let listed: BTreeSet<NamespacedName> = items.iter().map(|item| item.name.clone()).collect();
        let mut changed = BTreeSet::new();
        for item in items {
            self.watched_version = self.watched_version.max(parse_version(&item.version));
            changed.extend(self.apply(item));
        }
        let missing: Vec<NamespacedName> =
            self.entries.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in missing {
            // Made here after the list was read, or gone: only the source knows.
            if self.entries.get(&name).is_some_and(|entry| entry.ahead_of_watch) {
                self.stale.insert(name.clone());
            } else {
                self.entries.remove(&name);
            }
            changed.insert(name);
        }
        // What is put into a map in order leaves it half empty; what is made of a whole list is full.
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        changed
    }

    /// Puts an object there unless a newer one is; gives its name where that made a difference.
    fn apply(&mut self, item: CacheItem<T>) -> Option<NamespacedName> {
        let CacheItem { name, version, value } = item;
        match self.entries.get_mut(&name) {
            Some(entry) if is_newer(&entry.version, &version) => None,
            Some(entry) => {
                let changed = entry.value != value;
                *entry = CacheEntry { version, value, ahead_of_watch: false };
                changed.then_some(name)
            }
            None => {
                self.entries.insert(name.clone(), CacheEntry { version, value, ahead_of_watch: false });
                Some(name)
            }
        }
    }

    /// Takes in what a write of this process has made of an object.
    pub(crate) fn apply_write(&mut self, item: CacheItem<T>) {
        let CacheItem { name, version, value } = item;
        self.stale.remove(&name);
        // The watch is ahead of this answer: it has told everything up to there, a deletion too.
        if parse_version(&version) <= self.watched_version {
            return;
        }
        if self.entries.get(&name).is_none_or(|entry| !is_newer(&entry.version, &version)) {
            self.entries.insert(name, CacheEntry { version, value, ahead_of_watch: true });
        }
    }

    /// What the source said of an object that was doubtful.
    pub(crate) fn apply_live_read(&mut self, name: &NamespacedName, found: Option<CacheItem<T>>) {
        self.stale.remove(name);
        match found {
            Some(item) => self.apply_write(item),
            None => {
                self.entries.remove(name);
            }
        }
    }

    /// The source has to be asked about this object before it is read again.
    pub(crate) fn mark_stale(&mut self, name: &NamespacedName) {
        self.stale.insert(name.clone());
    }

    /// The same where what is here is older than this version, which somebody else has read.
    pub(crate) fn mark_stale_before(&mut self, name: &NamespacedName, version: &str) {
        if self.entries.get(name).is_some_and(|entry| is_newer(version, &entry.version)) {
            self.mark_stale(name);
        }
    }

    /// What has to be asked of the source, of one namespace or all.
    pub(crate) fn stale_names(&self, namespace: Option<&str>) -> Vec<NamespacedName> {
        let here = |name: &&NamespacedName| namespace.is_none_or(|namespace| name.namespace == namespace);
        self.stale.iter().filter(here).cloned().collect()
    }

    pub(crate) fn state(&self) -> SyncState {
        match (&self.problem, self.synced) {
            (_, true) => SyncState::Synced,
            (Some(problem), false) => SyncState::Failed(problem.clone()),
            (None, false) => SyncState::Pending,
        }
    }

    /// The same for what nothing else protects from being old: a permission that was taken away ends it. An API server
    /// that is away takes no writes either, so nothing comes of what is old.
    pub(crate) fn permitted_state(&self) -> SyncState {
        match &self.problem {
            Some(problem @ ApiError::Forbidden(_)) => SyncState::Failed(problem.clone()),
            _ => self.state(),
        }
    }

    /// Why news may be missing at present.
    pub(crate) fn problem(&self) -> Option<&ApiError> {
        self.problem.as_ref()
    }

    pub(crate) fn get(&self, name: &NamespacedName) -> Option<(&str, &T)> {
        self.entries.get(name).map(|entry| (entry.version.as_str(), &entry.value))
    }

    /// Every object of a namespace, by name.
    pub(crate) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a str, &'a T)> {
        let here = self.entries.range(NamespacedName::new(namespace, "")..);
        let here = here.take_while(move |(name, _)| name.namespace == namespace);
        here.map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }

    /// Every object, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &str, &T)> {
        self.entries.iter().map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }
}

fn parse_version(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}

/// Whether `one` is newer than `other`; not where that cannot be told.
fn is_newer(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one > other,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
