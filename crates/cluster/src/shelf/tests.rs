use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("prod", name)
}

fn item(named: &str, version: u64) -> Item<u64> {
    Item { name: name(named), version: version.to_string(), value: version }
}

fn away() -> ApiError {
    ApiError::Unavailable("away".to_owned())
}

/// Every object with its version.
fn content(shelf: &Shelf<u64>) -> Vec<(String, u64)> {
    shelf.iter().map(|(name, _, value)| (name.name.clone(), *value)).collect()
}

fn listed(items: &[Item<u64>]) -> Shelf<u64> {
    let mut shelf = Shelf::default();
    shelf.hear(Ok(News::Reset(items.to_vec())));
    shelf
}

#[test]
fn nothing_is_known_before_the_first_list() {
    let mut shelf = Shelf::<u64>::default();
    assert_eq!(shelf.state(), State::Waiting);
    shelf.hear(Err(away()));
    assert_eq!(shelf.state(), State::Failed(away()));
    shelf.hear(Ok(News::Reset(Vec::new())));
    assert_eq!(shelf.state(), State::Listed);
}

#[test]
fn an_outage_takes_nothing_away_and_a_removed_kind_everything() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.hear(Err(away()));
    assert_eq!((shelf.state(), shelf.problem()), (State::Listed, Some(&away())));
    let gone = ApiError::NotFound("no such kind".to_owned());
    shelf.hear(Err(gone.clone()));
    assert_eq!(shelf.state(), State::Failed(gone));
}

#[test]
fn a_permission_that_was_taken_away_ends_what_nothing_else_protects_from_being_old() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.hear(Err(away()));
    assert_eq!(shelf.state_now(), State::Listed);
    let forbidden = ApiError::Forbidden("may not".to_owned());
    shelf.hear(Err(forbidden.clone()));
    assert_eq!((shelf.state_now(), shelf.state()), (State::Failed(forbidden), State::Listed));
    shelf.hear(Ok(News::Reset(vec![item("a", 1)])));
    assert_eq!(shelf.state_now(), State::Listed);
}

#[test]
fn a_write_is_read_before_the_watch_tells_of_it() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.wrote(item("a", 5));
    assert!(shelf.hear(Ok(News::Apply(item("a", 3)))).is_empty(), "older than what was written");
    assert_eq!(content(&shelf), [("a".to_owned(), 5)]);
    shelf.hear(Ok(News::Apply(item("a", 5))));
    assert_eq!(shelf.hear(Ok(News::Apply(item("a", 6)))), BTreeSet::from([name("a")]));
    assert_eq!(content(&shelf), [("a".to_owned(), 6)]);
}

#[test]
fn an_answer_that_comes_after_the_watch_has_gone_on_changes_nothing() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.hear(Ok(News::Apply(item("a", 5))));
    shelf.hear(Ok(News::Delete(item("a", 6))));
    shelf.wrote(item("a", 5));
    assert!(content(&shelf).is_empty(), "it was deleted meanwhile");
}

#[test]
fn a_deletion_of_what_was_made_anew_meanwhile_is_not_believed() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.wrote(item("a", 9));
    assert!(shelf.hear(Ok(News::Delete(item("a", 4)))).is_empty());
    assert_eq!(content(&shelf), [("a".to_owned(), 9)]);
}

#[test]
fn a_deletion_without_a_version_is_asked_about_where_something_was_written_since() {
    let mut shelf = listed(&[item("a", 1), item("b", 2)]);
    shelf.wrote(item("a", 9));
    for name in ["a", "b"] {
        shelf.hear(Ok(News::Delete(Item { version: String::new(), ..item(name, 0) })));
    }
    assert_eq!(content(&shelf), [("a".to_owned(), 9)]);
    assert_eq!(shelf.doubtful(None), [name("a")]);
}

#[test]
fn a_list_that_is_older_than_a_write_does_not_undo_it() {
    let mut shelf = listed(&[item("a", 1), item("b", 2)]);
    shelf.wrote(item("a", 8));
    shelf.wrote(item("c", 9));
    shelf.hear(Ok(News::Reset(vec![item("a", 1)])));
    assert_eq!(content(&shelf), [("a".to_owned(), 8), ("c".to_owned(), 9)]);
    assert_eq!(shelf.doubtful(Some("prod")), [name("c")], "made after the list, or gone: the source knows");
    shelf.looked(&name("c"), None);
    assert_eq!(content(&shelf), [("a".to_owned(), 8)]);
    assert!(shelf.doubtful(None).is_empty());
}

#[test]
fn what_a_write_left_open_is_asked_of_the_source_once() {
    let mut shelf = listed(&[item("a", 1)]);
    shelf.doubt(&name("a"));
    assert_eq!(shelf.doubtful(Some("prod")), [name("a")]);
    assert!(shelf.doubtful(Some("elsewhere")).is_empty());
    shelf.hear(Ok(News::Apply(item("a", 2))));
    assert_eq!(shelf.doubtful(None), [name("a")], "the watch may tell of an earlier write");
    shelf.looked(&name("a"), Some(item("a", 3)));
    assert!(shelf.doubtful(None).is_empty());
    assert_eq!(content(&shelf), [("a".to_owned(), 3)]);
}

#[test]
fn what_is_older_than_somebody_else_has_read_is_asked_of_the_source() {
    let mut shelf = listed(&[item("a", 3)]);
    for version in ["2", "3", "no number"] {
        shelf.doubt_before(&name("a"), version);
    }
    shelf.doubt_before(&name("b"), "9");
    assert!(shelf.doubtful(None).is_empty());
    shelf.doubt_before(&name("a"), "4");
    assert_eq!(shelf.doubtful(None), [name("a")]);
    shelf.looked(&name("a"), Some(item("a", 5)));
    shelf.hear(Ok(News::Apply(item("a", 4))));
    assert_eq!(content(&shelf), [("a".to_owned(), 5)]);
}

#[test]
fn only_differences_are_told() {
    let mut shelf = Shelf::default();
    let same = |version: u64| Item { name: name("a"), version: version.to_string(), value: "x" };
    shelf.hear(Ok(News::Reset(vec![same(1)])));
    assert!(shelf.hear(Ok(News::Apply(same(2)))).is_empty(), "nothing that is kept has changed");
    assert_eq!(shelf.get(&name("a")), Some(("2", &"x")), "but the version is the new one");
}

#[test]
fn versions_that_are_no_numbers_leave_the_last_word_to_the_watch() {
    let word = |version: &str| Item { name: name("a"), version: version.to_owned(), value: version.to_owned() };
    let mut shelf = Shelf::default();
    shelf.hear(Ok(News::Reset(vec![word("x")])));
    shelf.hear(Ok(News::Apply(word("y"))));
    assert_eq!(shelf.get(&name("a")).unwrap().0, "y");
}
