//! Objects of one watch, found by what they are there for: there may be tens of thousands, of which a Rollout asks for a
//! few.

use crate::{
    api_error::ApiError,
    object_cache::{CacheItem, NamespacedName, ObjectCache, SyncState},
    watch::WatchEvent,
};
use std::collections::{BTreeMap, BTreeSet};

/// A shelf, and what is on it by what it is there for.
#[derive(Debug)]
pub(crate) struct Index<T> {
    cache: ObjectCache<T>,
    by_key: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
}

/// What one changed object was there for, and what it is there for now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IndexDelta {
    pub(crate) before: BTreeSet<NamespacedName>,
    pub(crate) now: BTreeSet<NamespacedName>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { cache: ObjectCache::default(), by_key: BTreeMap::new() }
    }
}

impl<T: PartialEq> Index<T> {
    /// Takes in what the watch tells; `purpose` says what an object is there for. Gives what is different now.
    pub(crate) fn handle_event(
        &mut self,
        told: Result<WatchEvent<CacheItem<T>>, ApiError>,
        purpose: impl Fn(&NamespacedName, &T) -> BTreeSet<NamespacedName>,
    ) -> Vec<IndexDelta> {
        let mut before: BTreeMap<NamespacedName, BTreeSet<NamespacedName>> = match &told {
            Ok(WatchEvent::Reset(_)) => {
                self.cache.iter().map(|(name, _, value)| (name.clone(), purpose(name, value))).collect()
            }
            Ok(WatchEvent::Apply(item) | WatchEvent::Delete(item)) => {
                let present = self.cache.get(&item.name);
                present.map(|(_, value)| (item.name.clone(), purpose(&item.name, value))).into_iter().collect()
            }
            Err(_) => BTreeMap::new(),
        };
        let mut turns = Vec::new();
        for name in self.cache.handle_event(told) {
            let before = before.remove(&name).unwrap_or_default();
            let now = self.cache.get(&name).map(|(_, value)| purpose(&name, value)).unwrap_or_default();
            for gone in before.difference(&now) {
                if let Some(names) = self.by_key.get_mut(gone) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.by_key.remove(gone);
                    }
                }
            }
            for new in now.difference(&before) {
                self.by_key.entry(new.clone()).or_default().insert(name.clone());
            }
            turns.push(IndexDelta { before, now });
        }
        turns
    }

    /// Every object that is there for this.
    pub(crate) fn lookup<'a>(
        &'a self,
        purpose: &NamespacedName,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a T)> + use<'a, T> {
        let names = self.by_key.get(purpose).into_iter().flatten();
        names.filter_map(|name| Some((name, self.cache.get(name)?.1)))
    }

    /// Whether it can be read, see [`Shelf::state_now`].
    pub(crate) fn permitted_state(&self) -> SyncState {
        self.cache.permitted_state()
    }

    /// Whether nothing was told yet, and why is known.
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.cache.state(), SyncState::Failed(_))
    }

    /// Why news may be missing at present.
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

    /// Each word is something that it is there for.
    fn keys_of(_: &NamespacedName, value: &&'static str) -> BTreeSet<NamespacedName> {
        value.split_whitespace().map(name).collect()
    }

    fn delta(before: &'static str, now: &'static str) -> IndexDelta {
        IndexDelta { before: keys_of(&name(""), &before), now: keys_of(&name(""), &now) }
    }

    fn names_under(index: &Index<&'static str>, purpose: &str) -> Vec<String> {
        index.lookup(&name(purpose)).map(|(name, _)| name.name.clone()).collect()
    }

    #[test]
    fn an_object_is_found_by_what_it_is_there_for_now() {
        let mut index = Index::default();
        assert_eq!(index.permitted_state(), SyncState::Pending);
        let all = vec![cache_item("a", 1, "x y"), cache_item("b", 1, "y"), cache_item("c", 1, "")];
        let turns = index.handle_event(Ok(WatchEvent::Reset(all)), keys_of);
        assert_eq!(turns, [delta("", "x y"), delta("", "y"), delta("", "")]);
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

        let turns = index.handle_event(Ok(WatchEvent::Reset(vec![cache_item("c", 1, "")])), keys_of);
        assert_eq!(turns, [delta("y z", "")], "one that went while nobody looked");
        assert!(names_under(&index, "y").is_empty() && index.by_key.is_empty());
    }

    #[test]
    fn an_outage_takes_nothing_away() {
        let mut index = Index::default();
        index.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1, "x")])), keys_of);
        let away = ApiError::Unavailable("away".to_owned());
        assert_eq!(index.handle_event(Err(away.clone()), keys_of), []);
        assert_eq!((names_under(&index, "x"), index.problem()), (vec!["a".to_owned()], Some(&away)));
    }
}
