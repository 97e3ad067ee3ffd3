//! Objects of one watch, found by what they are there for: there may be tens of thousands, of which a Rollout asks for a
//! few.

use crate::{
    answer::ApiError,
    shelf::{Item, ObjectName, Shelf, State},
    watch::News,
};
use std::collections::{BTreeMap, BTreeSet};

/// A shelf, and what is on it by what it is there for.
#[derive(Debug)]
pub(crate) struct Index<T> {
    shelf: Shelf<T>,
    found: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
}

/// What one changed object was there for, and what it is there for now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) before: BTreeSet<ObjectName>,
    pub(crate) now: BTreeSet<ObjectName>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { shelf: Shelf::default(), found: BTreeMap::new() }
    }
}

impl<T: PartialEq> Index<T> {
    /// Takes in what the watch tells; `purpose` says what an object is there for. Gives what is different now.
    pub(crate) fn hear(
        &mut self,
        told: Result<News<Item<T>>, ApiError>,
        purpose: impl Fn(&ObjectName, &T) -> BTreeSet<ObjectName>,
    ) -> Vec<Turn> {
        let mut before: BTreeMap<ObjectName, BTreeSet<ObjectName>> = match &told {
            Ok(News::Reset(_)) => {
                self.shelf.iter().map(|(name, _, value)| (name.clone(), purpose(name, value))).collect()
            }
            Ok(News::Apply(item) | News::Delete(item)) => {
                let present = self.shelf.get(&item.name);
                present.map(|(_, value)| (item.name.clone(), purpose(&item.name, value))).into_iter().collect()
            }
            Err(_) => BTreeMap::new(),
        };
        let mut turns = Vec::new();
        for name in self.shelf.hear(told) {
            let before = before.remove(&name).unwrap_or_default();
            let now = self.shelf.get(&name).map(|(_, value)| purpose(&name, value)).unwrap_or_default();
            for gone in before.difference(&now) {
                if let Some(names) = self.found.get_mut(gone) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.found.remove(gone);
                    }
                }
            }
            for new in now.difference(&before) {
                self.found.entry(new.clone()).or_default().insert(name.clone());
            }
            turns.push(Turn { before, now });
        }
        turns
    }

    /// Every object that is there for this.
    pub(crate) fn of<'a>(&'a self, purpose: &ObjectName) -> impl Iterator<Item = (&'a ObjectName, &'a T)> + use<'a, T> {
        let names = self.found.get(purpose).into_iter().flatten();
        names.filter_map(|name| Some((name, self.shelf.get(name)?.1)))
    }

    /// Whether it can be read, see [`Shelf::state_now`].
    pub(crate) fn state_now(&self) -> State {
        self.shelf.state_now()
    }

    /// Whether nothing was told yet, and why is known.
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.shelf.state(), State::Failed(_))
    }

    /// Why news may be missing at present.
    pub(crate) fn problem(&self) -> Option<&ApiError> {
        self.shelf.problem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("prod", name)
    }

    fn item(named: &str, version: u64, value: &'static str) -> Item<&'static str> {
        Item { name: name(named), version: version.to_string(), value }
    }

    /// Each word is something that it is there for.
    fn words(_: &ObjectName, value: &&'static str) -> BTreeSet<ObjectName> {
        value.split_whitespace().map(name).collect()
    }

    fn turn(before: &'static str, now: &'static str) -> Turn {
        Turn { before: words(&name(""), &before), now: words(&name(""), &now) }
    }

    fn found(index: &Index<&'static str>, purpose: &str) -> Vec<String> {
        index.of(&name(purpose)).map(|(name, _)| name.name.clone()).collect()
    }

    #[test]
    fn an_object_is_found_by_what_it_is_there_for_now() {
        let mut index = Index::default();
        assert_eq!(index.state_now(), State::Waiting);
        let all = vec![item("a", 1, "x y"), item("b", 1, "y"), item("c", 1, "")];
        let turns = index.hear(Ok(News::Reset(all)), words);
        assert_eq!(turns, [turn("", "x y"), turn("", "y"), turn("", "")]);
        assert_eq!((found(&index, "x"), found(&index, "y")), (vec!["a".to_owned()], vec!["a".into(), "b".into()]));

        assert_eq!(index.hear(Ok(News::Apply(item("a", 2, "y z"))), words), [turn("x y", "y z")]);
        assert_eq!((found(&index, "x"), found(&index, "z")), (vec![], vec!["a".to_owned()]));
        assert_eq!(index.hear(Ok(News::Delete(item("b", 3, "y"))), words), [turn("y", "")]);
        assert_eq!(found(&index, "y"), ["a"]);

        let turns = index.hear(Ok(News::Reset(vec![item("c", 1, "")])), words);
        assert_eq!(turns, [turn("y z", "")], "one that went while nobody looked");
        assert!(found(&index, "y").is_empty() && index.found.is_empty());
    }

    #[test]
    fn an_outage_takes_nothing_away() {
        let mut index = Index::default();
        index.hear(Ok(News::Reset(vec![item("a", 1, "x")])), words);
        let away = ApiError::Unavailable("away".to_owned());
        assert_eq!(index.hear(Err(away.clone()), words), []);
        assert_eq!((found(&index, "x"), index.problem()), (vec!["a".to_owned()], Some(&away)));
    }
}
