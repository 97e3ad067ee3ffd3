use super::*;
use serde_json::json;

const CURRENT: RewriteGroup = RewriteGroup::Current;
const LEGACY: RewriteGroup = RewriteGroup::Legacy;

fn object(name: &str) -> DynamicObject {
    let object = json!({
        "metadata": {"name": name, "namespace": "prod", "resourceVersion": "7", "labels": {"team": "x"}},
        "spec": {"poolRef": {"group": "g", "name": "pool", "later": 1}, "rules": [], "later": true},
    });
    serde_json::from_value(object).unwrap()
}

fn readable(name: &str) -> DynamicObject {
    let mut object = object(name);
    object.data["spec"]["poolRef"] = json!({"name": "pool"});
    object
}

fn handle(digest: &mut RewriteTracker, group: RewriteGroup, news: Result<WatchEvent<DynamicObject>, ApiError>) {
    digest.handle_event(group, news.map(|news| news.map(|object| RewriteObject::from_object(group, object))));
}

fn groups(groups: &[RewriteGroup]) -> BTreeSet<RewriteGroup> {
    groups.iter().copied().collect()
}

fn outage() -> ApiError {
    ApiError::Unavailable("away".to_owned())
}

/// What was told since, a word each.
fn drain(digest: &mut RewriteTracker) -> Vec<String> {
    let words = |news| match news {
        RewriteEvent::Reset { group, rewrites } => format!("{} has {}", group.name(), rewrites.len()),
        RewriteEvent::Apply(rewrite) => format!("apply {} {}", rewrite.group().unwrap().name(), rewrite.metadata.name),
        RewriteEvent::Delete { group, namespace, name } => format!("delete {} {namespace}/{name}", group.name()),
        RewriteEvent::State(state) => format!(
            "{} served{}{}",
            state.served_groups.len(),
            if state.synced { ", complete" } else { "" },
            state.problem.map(|problem| format!(", {problem}")).unwrap_or_default()
        ),
    };
    digest.pending.drain(..).map(words).collect()
}

#[test]
fn it_is_complete_when_every_group_that_is_installed_was_told_whole() {
    let mut digest = RewriteTracker::default();
    digest.handle_discovery(Ok(groups(&REWRITE_GROUPS)));
    assert_eq!(drain(&mut digest), ["2 served"]);
    handle(&mut digest, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    assert_eq!(drain(&mut digest), ["inference.networking.x-k8s.io has 1"]);
    handle(&mut digest, CURRENT, Ok(WatchEvent::Reset(Vec::new())));
    assert_eq!(drain(&mut digest), ["llm-d.ai has 0", "2 served, complete"]);
}

#[test]
fn it_is_complete_at_once_where_no_group_is_installed() {
    let mut digest = RewriteTracker::default();
    digest.handle_discovery(Ok(groups(&[])));
    assert_eq!(drain(&mut digest), ["0 served, complete"]);
}

#[test]
fn a_group_that_is_installed_later_takes_nothing_away_from_the_other() {
    let mut digest = RewriteTracker::default();
    digest.handle_discovery(Ok(groups(&[LEGACY])));
    handle(&mut digest, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    drain(&mut digest);
    assert!(digest.handle_discovery(Ok(groups(&REWRITE_GROUPS))).is_empty(), "no watch that runs is touched");
    assert_eq!(drain(&mut digest), ["2 served, complete"]);
    handle(&mut digest, CURRENT, Ok(WatchEvent::Reset(vec![readable("b")])));
    assert_eq!(drain(&mut digest), ["llm-d.ai has 1"]);
}

#[test]
fn a_group_that_is_removed_is_empty() {
    let mut digest = RewriteTracker::default();
    digest.handle_discovery(Ok(groups(&REWRITE_GROUPS)));
    handle(&mut digest, CURRENT, Ok(WatchEvent::Reset(vec![readable("b")])));
    handle(&mut digest, CURRENT, Err(ApiError::NotFound("gone".to_owned())));
    drain(&mut digest);
    assert_eq!(digest.handle_discovery(Ok(groups(&[LEGACY]))), [CURRENT]);
    assert_eq!(drain(&mut digest), ["llm-d.ai has 0", "1 served"]);
}

#[test]
fn an_outage_takes_nothing_away_and_after_it_every_watch_begins_anew() {
    let mut digest = RewriteTracker::default();
    digest.handle_discovery(Ok(groups(&[LEGACY])));
    handle(&mut digest, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    drain(&mut digest);
    assert!(digest.handle_discovery(Err(outage())).is_empty());
    handle(&mut digest, LEGACY, Err(outage()));
    assert_eq!(drain(&mut digest), ["1 served, complete, away"]);
    assert_eq!(digest.handle_discovery(Ok(groups(&[LEGACY]))), REWRITE_GROUPS);
    handle(&mut digest, LEGACY, Ok(WatchEvent::Reset(vec![readable("a"), readable("b")])));
    assert_eq!(drain(&mut digest), ["inference.networking.x-k8s.io has 2", "1 served, complete"]);
}

#[test]
fn changes_are_handed_over_one_by_one_and_what_cannot_be_read_is_left_out() {
    let mut digest = RewriteTracker::default();
    handle(&mut digest, CURRENT, Ok(WatchEvent::Apply(readable("a"))));
    handle(&mut digest, CURRENT, Ok(WatchEvent::Apply(object("b"))));
    handle(&mut digest, CURRENT, Ok(WatchEvent::Delete(object("b"))));
    assert_eq!(drain(&mut digest), ["apply llm-d.ai a", "delete llm-d.ai prod/b"]);
}

#[test]
fn fields_that_are_not_known_are_kept() {
    let rewrite = parse_rewrite(CURRENT, readable("a")).unwrap();
    let written = serde_json::to_value(&rewrite).unwrap();
    assert_eq!(written["spec"]["later"], true);
    assert_eq!(written["metadata"]["labels"]["team"], "x");
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    assert_eq!(written["apiVersion"], "llm-d.ai/v1alpha2");
}
