//! Cache of the objects of one watch and of this process's own writes; the newer version of both wins.
//!
//! Invariants:
//! - A read is never older than the last successful write of this process.
//! - An object whose write had an unknown outcome, or that is older than what another replica has read, is stale: it
//!   must be read from the API server before the next use.
//!
//! Versions of one kind are compared as numbers, which the API server guarantees. A version that is not a number cannot
//! be compared; then the watch has precedence.

use crate::{api_error::ApiError, watch::WatchEvent};
use std::collections::{BTreeMap, BTreeSet};

/// Namespace and name of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Namespace of the object; empty for a cluster-scoped one.
    pub namespace: String,
    /// `metadata.name`, unique within the namespace and kind.
    pub name: String,
}

impl NamespacedName {
    /// Creates the name of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object with its name and resource version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CacheItem<T> {
    pub(crate) name: NamespacedName,
    pub(crate) version: String,
    pub(crate) value: T,
}

#[derive(Debug, Clone, PartialEq)]
struct CacheEntry<T> {
    version: String,
    value: T,
    /// Whether this process wrote the version and the watch has not delivered it yet.
    ahead_of_watch: bool,
}

/// All objects of one watch.
#[derive(Debug)]
pub(crate) struct ObjectCache<T> {
    entries: BTreeMap<NamespacedName, CacheEntry<T>>,
    /// Whether the first complete list was received.
    synced: bool,
    /// Why the cache may be out of date, if it may.
    problem: Option<ApiError>,
    /// Highest version that the watch has delivered.
    watched_version: u64,
    /// Objects that must be read from the API server before their next use.
    stale: BTreeSet<NamespacedName>,
}

impl<T> Default for ObjectCache<T> {
    fn default() -> Self {
        let (entries, stale) = (BTreeMap::new(), BTreeSet::new());
        Self { entries, synced: false, problem: None, watched_version: 0, stale }
    }
}

/// Whether a cache can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SyncState {
    /// The first list was not received yet.
    Pending,
    /// The first list was received; a later outage does not change that.
    Synced,
    /// The first list could not be received, for this reason.
    Failed(ApiError),
}

impl<T: PartialEq> ObjectCache<T> {
    /// Applies a watch event. Returns the names of the objects whose value changed.
    pub(crate) fn handle_event(
        &mut self,
        event: Result<WatchEvent<CacheItem<T>>, ApiError>,
    ) -> BTreeSet<NamespacedName> {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if matches!(error, ApiError::NotFound(_)) {
                    // The kind itself was removed, so its objects no longer exist.
                    self.synced = false;
                }
                self.problem = Some(error);
                return BTreeSet::new();
            }
        };
        self.problem = None;
        match event {
            WatchEvent::Reset(items) => self.replace_all(items),
            WatchEvent::Apply(item) => {
                self.watched_version = self.watched_version.max(parse_version(&item.version));
                self.apply(item).into_iter().collect()
            }
            WatchEvent::Delete(item) => {
                self.watched_version = self.watched_version.max(parse_version(&item.version));
                let unversioned = item.version.is_empty();
                if unversioned && self.entries.get(&item.name).is_some_and(|entry| entry.ahead_of_watch) {
                    // The deleted version may be older than this process's write.
                    self.stale.insert(item.name.clone());
                    return BTreeSet::from([item.name]);
                }
                let is_not_newer = |entry: &CacheEntry<T>| !is_newer(&entry.version, &item.version);
                if self.entries.get(&item.name).is_some_and(is_not_newer) {
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
            // Created by this process after the list was read, or deleted: only the API server knows.
            if self.entries.get(&name).is_some_and(|entry| entry.ahead_of_watch) {
                self.stale.insert(name.clone());
            } else {
                self.entries.remove(&name);
            }
            changed.insert(name);
        }
        // A map that was filled in key order is half empty; collecting the whole list packs its nodes.
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        changed
    }

    /// Stores an object unless the cache has a newer version. Returns its name if its value changed.
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

    /// Stores the result of a write of this process.
    pub(crate) fn apply_write(&mut self, item: CacheItem<T>) {
        let CacheItem { name, version, value } = item;
        self.stale.remove(&name);
        // The watch has already delivered everything up to this version, including a later deletion.
        if parse_version(&version) <= self.watched_version {
            return;
        }
        if self.entries.get(&name).is_none_or(|entry| !is_newer(&entry.version, &version)) {
            self.entries.insert(name, CacheEntry { version, value, ahead_of_watch: true });
        }
    }

    /// Stores the result of a read from the API server for a stale object.
    pub(crate) fn apply_live_read(&mut self, name: &NamespacedName, found: Option<CacheItem<T>>) {
        self.stale.remove(name);
        match found {
            Some(item) => self.apply_write(item),
            None => {
                self.entries.remove(name);
            }
        }
    }

    /// Marks an object as stale: it must be read from the API server before its next use.
    pub(crate) fn mark_stale(&mut self, name: &NamespacedName) {
        self.stale.insert(name.clone());
    }

    /// Marks an object as stale if the cached version is older than this one, which another replica has read.
    pub(crate) fn mark_stale_before(&mut self, name: &NamespacedName, version: &str) {
        if self.entries.get(name).is_some_and(|entry| is_newer(version, &entry.version)) {
            self.mark_stale(name);
        }
    }

    /// Returns the names of the stale objects of one namespace, or of all.
    pub(crate) fn stale_names(&self, namespace: Option<&str>) -> Vec<NamespacedName> {
        let in_scope = |name: &&NamespacedName| namespace.is_none_or(|namespace| name.namespace == namespace);
        self.stale.iter().filter(in_scope).cloned().collect()
    }

    pub(crate) fn state(&self) -> SyncState {
        match (&self.problem, self.synced) {
            (_, true) => SyncState::Synced,
            (Some(problem), false) => SyncState::Failed(problem.clone()),
            (None, false) => SyncState::Pending,
        }
    }

    /// Returns the state for objects without versioned writes, whose use no conflict protects from being outdated: a
    /// missing permission fails even after a sync. An outage does not, because then no write succeeds either.
    pub(crate) fn permitted_state(&self) -> SyncState {
        match &self.problem {
            Some(problem @ ApiError::Forbidden(_)) => SyncState::Failed(problem.clone()),
            _ => self.state(),
        }
    }

    /// Returns why the cache may be out of date, if it may.
    pub(crate) fn problem(&self) -> Option<&ApiError> {
        self.problem.as_ref()
    }

    pub(crate) fn get(&self, name: &NamespacedName) -> Option<(&str, &T)> {
        self.entries.get(name).map(|entry| (entry.version.as_str(), &entry.value))
    }

    /// Returns the objects of a namespace, ordered by name.
    pub(crate) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a str, &'a T)> {
        let in_scope = self.entries.range(NamespacedName::new(namespace, "")..);
        let in_scope = in_scope.take_while(move |(name, _)| name.namespace == namespace);
        in_scope.map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }

    /// Returns all objects, ordered by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &str, &T)> {
        self.entries.iter().map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }
}

fn parse_version(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}

/// Returns whether `one` is newer than `other`; false if the versions cannot be compared.
fn is_newer(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one > other,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
