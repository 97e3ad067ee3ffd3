//! Object cache with a secondary index: there may be tens of thousands of objects, of which a Rollout needs a few.

use crate::{
    api_error::ApiError,
    object_cache::{CacheItem, NamespacedName, ObjectCache, SyncState},
    watch::WatchEvent,
};
use std::collections::{BTreeMap, BTreeSet};

/// An object cache, and the names of its objects by secondary key.
#[derive(Debug)]
pub(crate) struct Index<T> {
    cache: ObjectCache<T>,
    by_key: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
}

/// Secondary keys of one changed object before and after the change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IndexDelta {
    pub(crate) before: BTreeSet<NamespacedName>,
    pub(crate) after: BTreeSet<NamespacedName>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { cache: ObjectCache::default(), by_key: BTreeMap::new() }
    }
}

impl<T: PartialEq> Index<T> {
    /// Applies a watch event; `keys_of` returns the secondary keys of an object. Returns the changes of the keys.
    pub(crate) fn handle_event(
        &mut self,
        event: Result<WatchEvent<CacheItem<T>>, ApiError>,
        keys_of: impl Fn(&NamespacedName, &T) -> BTreeSet<NamespacedName>,
    ) -> Vec<IndexDelta> {
        let mut before: BTreeMap<NamespacedName, BTreeSet<NamespacedName>> = match &event {
            Ok(WatchEvent::Reset(_)) => {
                self.cache.iter().map(|(name, _, value)| (name.clone(), keys_of(name, value))).collect()
            }
            Ok(WatchEvent::Apply(item) | WatchEvent::Delete(item)) => {
                let present = self.cache.get(&item.name);
                present.map(|(_, value)| (item.name.clone(), keys_of(&item.name, value))).into_iter().collect()
            }
            Err(_) => BTreeMap::new(),
        };
        let mut deltas = Vec::new();
        for name in self.cache.handle_event(event) {
            let before = before.remove(&name).unwrap_or_default();
            let after = self.cache.get(&name).map(|(_, value)| keys_of(&name, value)).unwrap_or_default();
            for removed in before.difference(&after) {
                if let Some(names) = self.by_key.get_mut(removed) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.by_key.remove(removed);
                    }
                }
            }
            for added in after.difference(&before) {
                self.by_key.entry(added.clone()).or_default().insert(name.clone());
            }
            deltas.push(IndexDelta { before, after });
        }
        deltas
    }

    /// Returns every object that has this secondary key.
    pub(crate) fn lookup<'a>(
        &'a self,
        key: &NamespacedName,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a T)> + use<'a, T> {
        let names = self.by_key.get(key).into_iter().flatten();
        names.filter_map(|name| Some((name, self.cache.get(name)?.1)))
    }

    /// Returns whether the cache can be read, see [`ObjectCache::permitted_state`].
    pub(crate) fn permitted_state(&self) -> SyncState {
        self.cache.permitted_state()
    }

    /// Returns whether the first list failed.
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.cache.state(), SyncState::Failed(_))
    }

    /// Returns why the cache may be out of date, if it may.
    pub(crate) fn problem(&self) -> Option<&ApiError> {
        self.cache.problem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("prod", name)
    }

    fn cache_item(named: &str, version: u64, value: &'static str) -> CacheItem<&'static str> {
        CacheItem { name: name(named), version: version.to_string(), value }
    }

    /// Each word is a secondary key.
    fn keys_of(_: &NamespacedName, value: &&'static str) -> BTreeSet<NamespacedName> {
        value.split_whitespace().map(name).collect()
    }

    fn delta(before: &'static str, after: &'static str) -> IndexDelta {
        IndexDelta { before: keys_of(&name(""), &before), after: keys_of(&name(""), &after) }
    }

    fn names_under(index: &Index<&'static str>, key: &str) -> Vec<String> {
        index.lookup(&name(key)).map(|(name, _)| name.name.clone()).collect()
    }

    #[test]
    fn object_is_found_under_its_current_keys() {
        let mut index = Index::default();
        assert_eq!(index.permitted_state(), SyncState::Pending);
        let all = vec![cache_item("a", 1, "x y"), cache_item("b", 1, "y"), cache_item("c", 1, "")];
        let deltas = index.handle_event(Ok(WatchEvent::Reset(all)), keys_of);
        assert_eq!(deltas, [delta("", "x y"), delta("", "y"), delta("", "")]);
        assert_eq!(
            (names_under(&index, "x"), names_under(&index, "y")),
            (vec!["a".to_owned()], vec!["a".into(), "b".into()])
        );

        assert_eq!(
            index.handle_event(Ok(WatchEvent::Apply(cache_item("a", 2, "y z"))), keys_of),
            [delta("x y", "y z")]
        );
        assert_eq!((names_under(&index, "x"), names_under(&index, "z")), (vec![], vec!["a".to_owned()]));
        assert_eq!(index.handle_event(Ok(WatchEvent::Delete(cache_item("b", 3, "y"))), keys_of), [delta("y", "")]);
        assert_eq!(names_under(&index, "y"), ["a"]);

        let deltas = index.handle_event(Ok(WatchEvent::Reset(vec![cache_item("c", 1, "")])), keys_of);
        assert_eq!(deltas, [delta("y z", "")], "an object that was deleted while the watch was interrupted");
        assert!(names_under(&index, "y").is_empty() && index.by_key.is_empty());
    }

    #[test]
    fn outage_removes_nothing() {
        let mut index = Index::default();
        index.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1, "x")])), keys_of);
        let outage = ApiError::Unavailable("outage".to_owned());
        assert_eq!(index.handle_event(Err(outage.clone()), keys_of), []);
        assert_eq!((names_under(&index, "x"), index.problem()), (vec!["a".to_owned()], Some(&outage)));
    }
}
