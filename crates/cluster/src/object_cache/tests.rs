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

fn content(cache: &ObjectCache<u64>) -> Vec<(String, u64)> {
    cache.iter().map(|(name, _, value)| (name.name.clone(), *value)).collect()
}

fn synced_cache(items: &[CacheItem<u64>]) -> ObjectCache<u64> {
    let mut cache = ObjectCache::default();
    cache.handle_event(Ok(WatchEvent::Reset(items.to_vec())));
    cache
}

#[test]
fn cache_is_not_synced_before_first_list() {
    let mut cache = ObjectCache::<u64>::default();
    assert_eq!(cache.state(), SyncState::Pending);
    cache.handle_event(Err(outage()));
    assert_eq!(cache.state(), SyncState::Failed(outage()));
    cache.handle_event(Ok(WatchEvent::Reset(Vec::new())));
    assert_eq!(cache.state(), SyncState::Synced);
}

#[test]
fn outage_keeps_objects_and_removed_kind_ends_sync() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.handle_event(Err(outage()));
    assert_eq!((cache.state(), cache.problem()), (SyncState::Synced, Some(&outage())));
    let gone = ApiError::NotFound("no such kind".to_owned());
    cache.handle_event(Err(gone.clone()));
    assert_eq!(cache.state(), SyncState::Failed(gone));
}

#[test]
fn permitted_state_fails_when_permission_is_revoked() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.handle_event(Err(outage()));
    assert_eq!(cache.permitted_state(), SyncState::Synced);
    let forbidden = ApiError::Forbidden("may not".to_owned());
    cache.handle_event(Err(forbidden.clone()));
    assert_eq!((cache.permitted_state(), cache.state()), (SyncState::Failed(forbidden), SyncState::Synced));
    cache.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1)])));
    assert_eq!(cache.permitted_state(), SyncState::Synced);
}

#[test]
fn own_write_is_visible_before_watch_delivers_it() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.apply_write(cache_item("a", 5));
    assert!(cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 3)))).is_empty(), "older than the write");
    assert_eq!(content(&cache), [("a".to_owned(), 5)]);
    cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 5))));
    assert_eq!(cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 6)))), BTreeSet::from([name("a")]));
    assert_eq!(content(&cache), [("a".to_owned(), 6)]);
}

#[test]
fn late_write_response_changes_nothing_after_deletion() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 5))));
    cache.handle_event(Ok(WatchEvent::Delete(cache_item("a", 6))));
    cache.apply_write(cache_item("a", 5));
    assert!(content(&cache).is_empty(), "it was deleted meanwhile");
}

#[test]
fn older_deletion_does_not_remove_recreated_object() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.apply_write(cache_item("a", 9));
    assert!(cache.handle_event(Ok(WatchEvent::Delete(cache_item("a", 4)))).is_empty());
    assert_eq!(content(&cache), [("a".to_owned(), 9)]);
}

#[test]
fn unversioned_deletion_marks_written_object_stale() {
    let mut cache = synced_cache(&[cache_item("a", 1), cache_item("b", 2)]);
    cache.apply_write(cache_item("a", 9));
    for name in ["a", "b"] {
        cache.handle_event(Ok(WatchEvent::Delete(CacheItem { version: String::new(), ..cache_item(name, 0) })));
    }
    assert_eq!(content(&cache), [("a".to_owned(), 9)]);
    assert_eq!(cache.stale_names(None), [name("a")]);
}

#[test]
fn list_older_than_a_write_does_not_undo_it() {
    let mut cache = synced_cache(&[cache_item("a", 1), cache_item("b", 2)]);
    cache.apply_write(cache_item("a", 8));
    cache.apply_write(cache_item("c", 9));
    cache.handle_event(Ok(WatchEvent::Reset(vec![cache_item("a", 1)])));
    assert_eq!(content(&cache), [("a".to_owned(), 8), ("c".to_owned(), 9)]);
    assert_eq!(cache.stale_names(Some("prod")), [name("c")], "created after the list, or deleted");
    cache.apply_live_read(&name("c"), None);
    assert_eq!(content(&cache), [("a".to_owned(), 8)]);
    assert!(cache.stale_names(None).is_empty());
}

#[test]
fn stale_object_is_read_live_once() {
    let mut cache = synced_cache(&[cache_item("a", 1)]);
    cache.mark_stale(&name("a"));
    assert_eq!(cache.stale_names(Some("prod")), [name("a")]);
    assert!(cache.stale_names(Some("elsewhere")).is_empty());
    cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 2))));
    assert_eq!(cache.stale_names(None), [name("a")], "the watch may deliver an earlier write");
    cache.apply_live_read(&name("a"), Some(cache_item("a", 3)));
    assert!(cache.stale_names(None).is_empty());
    assert_eq!(content(&cache), [("a".to_owned(), 3)]);
}

#[test]
fn object_older_than_another_read_becomes_stale() {
    let mut cache = synced_cache(&[cache_item("a", 3)]);
    for version in ["2", "3", "no number"] {
        cache.mark_stale_before(&name("a"), version);
    }
    cache.mark_stale_before(&name("b"), "9");
    assert!(cache.stale_names(None).is_empty());
    cache.mark_stale_before(&name("a"), "4");
    assert_eq!(cache.stale_names(None), [name("a")]);
    cache.apply_live_read(&name("a"), Some(cache_item("a", 5)));
    cache.handle_event(Ok(WatchEvent::Apply(cache_item("a", 4))));
    assert_eq!(content(&cache), [("a".to_owned(), 5)]);
}

#[test]
fn unchanged_value_is_not_reported() {
    let mut cache = ObjectCache::default();
    let same_value = |version: u64| CacheItem { name: name("a"), version: version.to_string(), value: "x" };
    cache.handle_event(Ok(WatchEvent::Reset(vec![same_value(1)])));
    assert!(cache.handle_event(Ok(WatchEvent::Apply(same_value(2)))).is_empty(), "the value is unchanged");
    assert_eq!(cache.get(&name("a")), Some(("2", &"x")), "but the version is the new one");
}

#[test]
fn watch_wins_for_versions_that_are_not_numbers() {
    let word_version =
        |version: &str| CacheItem { name: name("a"), version: version.to_owned(), value: version.to_owned() };
    let mut cache = ObjectCache::default();
    cache.handle_event(Ok(WatchEvent::Reset(vec![word_version("x")])));
    cache.handle_event(Ok(WatchEvent::Apply(word_version("y"))));
    assert_eq!(cache.get(&name("a")).unwrap().0, "y");
}
