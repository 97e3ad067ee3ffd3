//! What one watch has told, and what this process itself has written: the newer of both.
//!
//! Invariants:
//! - What is read is never older than the last write that ended well.
//! - What a write left open, or is older than what somebody else has read, is not read before the source was asked.
//!
//! Versions of one kind are compared as numbers, which API servers promise. One that is no number counts as newer than
//! anything: then the watch has the last word.

use crate::{answer::ApiError, watch::News};
use std::collections::{BTreeMap, BTreeSet};

/// A namespace and a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// Of these two words.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object, its name and its version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item<T> {
    pub(crate) name: ObjectName,
    pub(crate) version: String,
    pub(crate) value: T,
}

/// One object on the shelf.
#[derive(Debug, Clone, PartialEq)]
struct Entry<T> {
    version: String,
    value: T,
    /// Written here, and not told by the watch yet.
    ahead: bool,
}

/// All objects of one watch.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    entries: BTreeMap<ObjectName, Entry<T>>,
    /// Whether the watch has told everything once.
    listed: bool,
    /// Why news may be missing now.
    problem: Option<ApiError>,
    /// The highest version that the watch has told.
    told: u64,
    /// Objects that the source has to be asked about.
    doubtful: BTreeSet<ObjectName>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        let (entries, doubtful) = (BTreeMap::new(), BTreeSet::new());
        Self { entries, listed: false, problem: None, told: 0, doubtful }
    }
}

/// Whether the shelf can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was told yet.
    Waiting,
    /// Everything was told; an outage since then does not matter.
    Listed,
    /// Nothing was told, because of this.
    Failed(ApiError),
}

impl<T: PartialEq> Shelf<T> {
    /// Takes in what the watch tells; gives the names of what is different now.
    pub(crate) fn hear(&mut self, news: Result<News<Item<T>>, ApiError>) -> BTreeSet<ObjectName> {
        let news = match news {
            Ok(news) => news,
            Err(error) => {
                if matches!(error, ApiError::NotFound(_)) {
                    // The kind itself is gone: what was told of it is no longer true.
                    self.listed = false;
                }
                self.problem = Some(error);
                return BTreeSet::new();
            }
        };
        self.problem = None;
        match news {
            News::Reset(items) => self.reset(items),
            News::Apply(item) => {
                self.told = self.told.max(number(&item.version));
                self.apply(item).into_iter().collect()
            }
            News::Delete(item) => {
                self.told = self.told.max(number(&item.version));
                let unversioned = item.version.is_empty();
                if unversioned && self.entries.get(&item.name).is_some_and(|entry| entry.ahead) {
                    // What went may be older than what was written here.
                    self.doubtful.insert(item.name.clone());
                    return BTreeSet::from([item.name]);
                }
                let older = |entry: &Entry<T>| !is_newer(&entry.version, &item.version);
                if self.entries.get(&item.name).is_some_and(older) {
                    self.entries.remove(&item.name);
                    return BTreeSet::from([item.name]);
                }
                BTreeSet::new()
            }
        }
    }

    fn reset(&mut self, items: Vec<Item<T>>) -> BTreeSet<ObjectName> {
        self.listed = true;
        let listed: BTreeSet<ObjectName> = items.iter().map(|item| item.name.clone()).collect();
        let mut changed = BTreeSet::new();
        for item in items {
            self.told = self.told.max(number(&item.version));
            changed.extend(self.apply(item));
        }
        let missing: Vec<ObjectName> = self.entries.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in missing {
            // Made here after the list was read, or gone: only the source knows.
            if self.entries.get(&name).is_some_and(|entry| entry.ahead) {
                self.doubtful.insert(name.clone());
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
    fn apply(&mut self, item: Item<T>) -> Option<ObjectName> {
        let Item { name, version, value } = item;
        match self.entries.get_mut(&name) {
            Some(entry) if is_newer(&entry.version, &version) => None,
            Some(entry) => {
                let changed = entry.value != value;
                *entry = Entry { version, value, ahead: false };
                changed.then_some(name)
            }
            None => {
                self.entries.insert(name.clone(), Entry { version, value, ahead: false });
                Some(name)
            }
        }
    }

    /// Takes in what a write of this process has made of an object.
    pub(crate) fn wrote(&mut self, item: Item<T>) {
        let Item { name, version, value } = item;
        self.doubtful.remove(&name);
        // The watch is ahead of this answer: it has told everything up to there, a deletion too.
        if number(&version) <= self.told {
            return;
        }
        if self.entries.get(&name).is_none_or(|entry| !is_newer(&entry.version, &version)) {
            self.entries.insert(name, Entry { version, value, ahead: true });
        }
    }

    /// What the source said of an object that was doubtful.
    pub(crate) fn looked(&mut self, name: &ObjectName, found: Option<Item<T>>) {
        self.doubtful.remove(name);
        match found {
            Some(item) => self.wrote(item),
            None => {
                self.entries.remove(name);
            }
        }
    }

    /// The source has to be asked about this object before it is read again.
    pub(crate) fn doubt(&mut self, name: &ObjectName) {
        self.doubtful.insert(name.clone());
    }

    /// The same where what is here is older than this version, which somebody else has read.
    pub(crate) fn doubt_before(&mut self, name: &ObjectName, version: &str) {
        if self.entries.get(name).is_some_and(|entry| is_newer(version, &entry.version)) {
            self.doubt(name);
        }
    }

    /// What has to be asked of the source, of one namespace or all.
    pub(crate) fn doubtful(&self, namespace: Option<&str>) -> Vec<ObjectName> {
        let here = |name: &&ObjectName| namespace.is_none_or(|namespace| name.namespace == namespace);
        self.doubtful.iter().filter(here).cloned().collect()
    }

    pub(crate) fn state(&self) -> State {
        match (&self.problem, self.listed) {
            (_, true) => State::Listed,
            (Some(problem), false) => State::Failed(problem.clone()),
            (None, false) => State::Waiting,
        }
    }

    /// The same for what nothing else protects from being old: a permission that was taken away ends it. An API server
    /// that is away takes no writes either, so nothing comes of what is old.
    pub(crate) fn state_now(&self) -> State {
        match &self.problem {
            Some(problem @ ApiError::Forbidden(_)) => State::Failed(problem.clone()),
            _ => self.state(),
        }
    }

    /// Why news may be missing at present.
    pub(crate) fn problem(&self) -> Option<&ApiError> {
        self.problem.as_ref()
    }

    pub(crate) fn get(&self, name: &ObjectName) -> Option<(&str, &T)> {
        self.entries.get(name).map(|entry| (entry.version.as_str(), &entry.value))
    }

    /// Every object of a namespace, by name.
    pub(crate) fn of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a str, &'a T)> {
        let here = self.entries.range(ObjectName::new(namespace, "")..);
        let here = here.take_while(move |(name, _)| name.namespace == namespace);
        here.map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }

    /// Every object, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &str, &T)> {
        self.entries.iter().map(|(name, entry)| (name, entry.version.as_str(), &entry.value))
    }
}

fn number(version: &str) -> u64 {
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
