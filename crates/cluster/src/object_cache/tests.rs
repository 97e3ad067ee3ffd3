use super::*;

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("prod", name)
}

fn cache_item(named: &str, version: u64) -> CacheItem<u64> {
    CacheItem { name: name(named), version: version.to_string(), value: version }
}

fn outage() -> ApiError {
    ApiError::Unavailable("away".to_owned())
}

/// Every object with its version.
fn content(shelf: &ObjectCache<u64>) -> Vec<(String, u64)> {
    shelf.iter().map(|(name, _, value)| (name.name.clone(), *value)).collect()
}

fn synced_cache(items: &[CacheItem<u64>]) -> ObjectCache<u64> {
    let mut shelf = ObjectCache::default();
    shelf.handle_event(Ok(WatchEvent::Reset(items.to_vec())));
    shelf
}

#[test]
fn nothing_is_known_before_the_first_list() {
    let mut shelf = ObjectCache::<u64>::default();
    assert_eq!(shelf.state(), SyncState::Pending);
    shelf.handle_event(Err(outage()));
    assert_eq!(shelf.state(), SyncState::Failed(outage()));
    shelf.handle_event(Ok(WatchEvent::Reset(Vec::new())));
    assert_eq!(shelf.state(), SyncState::Synced);
}

#[test]
fn an_outage_takes_nothing_away_and_a_removed_kind_everything() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.handle_event(Err(outage()));
    assert_eq!((shelf.state(), shelf.problem()), (SyncState::Synced, Some(&outage())));
    let gone = ApiError::NotFound("no such kind".to_owned());
    shelf.handle_event(Err(gone.clone()));
    assert_eq!(shelf.state(), SyncState::Failed(gone));
}

#[test]
fn a_permission_that_was_taken_away_ends_what_nothing_else_protects_from_being_old() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.handle_event(Err(outage()));
    assert_eq!(shelf.permitted_state(), SyncState::Synced);
    let forbidden = ApiError::Forbidden("may not".to_owned());
    shelf.handle_event(Err(forbidden.clone()));
    assert_eq!((shelf.permitted_state(), shelf.state()), (SyncState::Failed(forbidden), SyncState::Synced));
    shelf.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1)])));
    assert_eq!(shelf.permitted_state(), SyncState::Synced);
}

#[test]
fn a_write_is_read_before_the_watch_tells_of_it() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.apply_write(cache_item("a", 5));
    assert!(shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 3)))).is_empty(), "older than what was written");
    assert_eq!(content(&shelf), [("a".to_owned(), 5)]);
    shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 5))));
    assert_eq!(shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 6)))), BTreeSet::from([name("a")]));
    assert_eq!(content(&shelf), [("a".to_owned(), 6)]);
}

#[test]
fn an_answer_that_comes_after_the_watch_has_gone_on_changes_nothing() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 5))));
    shelf.handle_event(Ok(WatchEvent::Delete(cache_item("a", 6))));
    shelf.apply_write(cache_item("a", 5));
    assert!(content(&shelf).is_empty(), "it was deleted meanwhile");
}

#[test]
fn a_deletion_of_what_was_made_anew_meanwhile_is_not_believed() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.apply_write(cache_item("a", 9));
    assert!(shelf.handle_event(Ok(WatchEvent::Delete(cache_item("a", 4)))).is_empty());
    assert_eq!(content(&shelf), [("a".to_owned(), 9)]);
}

#[test]
fn a_deletion_without_a_version_is_asked_about_where_something_was_written_since() {
    let mut shelf = synced_cache(&[cache_item("a", 1), cache_item("b", 2)]);
    shelf.apply_write(cache_item("a", 9));
    for name in ["a", "b"] {
        shelf.handle_event(Ok(WatchEvent::Delete(CacheItem { version: String::new(), ..cache_item(name, 0) })));
    }
    assert_eq!(content(&shelf), [("a".to_owned(), 9)]);
    assert_eq!(shelf.stale_names(None), [name("a")]);
}

#[test]
fn a_list_that_is_older_than_a_write_does_not_undo_it() {
    let mut shelf = synced_cache(&[cache_item("a", 1), cache_item("b", 2)]);
    shelf.apply_write(cache_item("a", 8));
    shelf.apply_write(cache_item("c", 9));
    shelf.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1)])));
    assert_eq!(content(&shelf), [("a".to_owned(), 8), ("c".to_owned(), 9)]);
    assert_eq!(shelf.stale_names(Some("prod")), [name("c")], "made after the list, or gone: the source knows");
    shelf.apply_live_read(&name("c"), None);
    assert_eq!(content(&shelf), [("a".to_owned(), 8)]);
    assert!(shelf.stale_names(None).is_empty());
}

#[test]
fn what_a_write_left_open_is_asked_of_the_source_once() {
    let mut shelf = synced_cache(&[cache_item("a", 1)]);
    shelf.mark_stale(&name("a"));
    assert_eq!(shelf.stale_names(Some("prod")), [name("a")]);
    assert!(shelf.stale_names(Some("elsewhere")).is_empty());
    shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 2))));
    assert_eq!(shelf.stale_names(None), [name("a")], "the watch may tell of an earlier write");
    shelf.apply_live_read(&name("a"), Some(cache_item("a", 3)));
    assert!(shelf.stale_names(None).is_empty());
    assert_eq!(content(&shelf), [("a".to_owned(), 3)]);
}

#[test]
fn what_is_older_than_somebody_else_has_read_is_asked_of_the_source() {
    let mut shelf = synced_cache(&[cache_item("a", 3)]);
    for version in ["2", "3", "no number"] {
        shelf.mark_stale_before(&name("a"), version);
    }
    shelf.mark_stale_before(&name("b"), "9");
    assert!(shelf.stale_names(None).is_empty());
    shelf.mark_stale_before(&name("a"), "4");
    assert_eq!(shelf.stale_names(None), [name("a")]);
    shelf.apply_live_read(&name("a"), Some(cache_item("a", 5)));
    shelf.handle_event(Ok(WatchEvent::Apply(cache_item("a", 4))));
    assert_eq!(content(&shelf), [("a".to_owned(), 5)]);
}

#[test]
fn only_differences_are_told() {
    let mut shelf = ObjectCache::default();
    let same = |version: u64| CacheItem { name: name("a"), version: version.to_string(), value: "x" };
    shelf.handle_event(Ok(WatchEvent::Reset(vec![same(1)])));
    assert!(shelf.handle_event(Ok(WatchEvent::Apply(same(2)))).is_empty(), "nothing that is kept has changed");
    assert_eq!(shelf.get(&name("a")), Some(("2", &"x")), "but the version is the new one");
}

#[test]
fn versions_that_are_no_numbers_leave_the_last_word_to_the_watch() {
    let word = |version: &str| CacheItem { name: name("a"), version: version.to_owned(), value: version.to_owned() };
    let mut shelf = ObjectCache::default();
    shelf.handle_event(Ok(WatchEvent::Reset(vec![word("x")])));
    shelf.handle_event(Ok(WatchEvent::Apply(word("y"))));
    assert_eq!(shelf.get(&name("a")).unwrap().0, "y");
}
