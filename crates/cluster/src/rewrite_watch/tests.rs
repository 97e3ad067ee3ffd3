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

fn handle(tracker: &mut RewriteTracker, group: RewriteGroup, event: Result<WatchEvent<DynamicObject>, ApiError>) {
    tracker.handle_event(group, event.map(|event| event.map(|object| RewriteObject::from_object(group, object))));
}

fn groups(groups: &[RewriteGroup]) -> BTreeSet<RewriteGroup> {
    groups.iter().copied().collect()
}

fn outage() -> ApiError {
    ApiError::Unavailable("away".to_owned())
}

/// Returns a description of each event since the last call.
fn drain(tracker: &mut RewriteTracker) -> Vec<String> {
    let describe = |event| match event {
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
    tracker.pending.drain(..).map(describe).collect()
}

#[test]
fn synced_after_first_list_of_every_served_group() {
    let mut tracker = RewriteTracker::default();
    tracker.handle_discovery(Ok(groups(&REWRITE_GROUPS)));
    assert_eq!(drain(&mut tracker), ["2 served"]);
    handle(&mut tracker, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    assert_eq!(drain(&mut tracker), ["inference.networking.x-k8s.io has 1"]);
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Reset(Vec::new())));
    assert_eq!(drain(&mut tracker), ["llm-d.ai has 0", "2 served, complete"]);
}

#[test]
fn synced_immediately_if_no_group_is_served() {
    let mut tracker = RewriteTracker::default();
    tracker.handle_discovery(Ok(groups(&[])));
    assert_eq!(drain(&mut tracker), ["0 served, complete"]);
}

#[test]
fn group_installed_later_keeps_the_other_group() {
    let mut tracker = RewriteTracker::default();
    tracker.handle_discovery(Ok(groups(&[LEGACY])));
    handle(&mut tracker, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    drain(&mut tracker);
    assert!(tracker.handle_discovery(Ok(groups(&REWRITE_GROUPS))).is_empty(), "running watches continue");
    assert_eq!(drain(&mut tracker), ["2 served, complete"]);
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Reset(vec![readable("b")])));
    assert_eq!(drain(&mut tracker), ["llm-d.ai has 1"]);
}

#[test]
fn removed_group_becomes_empty() {
    let mut tracker = RewriteTracker::default();
    tracker.handle_discovery(Ok(groups(&REWRITE_GROUPS)));
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Reset(vec![readable("b")])));
    handle(&mut tracker, CURRENT, Err(ApiError::NotFound("gone".to_owned())));
    drain(&mut tracker);
    assert_eq!(tracker.handle_discovery(Ok(groups(&[LEGACY]))), [CURRENT]);
    assert_eq!(drain(&mut tracker), ["llm-d.ai has 0", "1 served"]);
}

#[test]
fn outage_removes_nothing_and_restarts_every_watch() {
    let mut tracker = RewriteTracker::default();
    tracker.handle_discovery(Ok(groups(&[LEGACY])));
    handle(&mut tracker, LEGACY, Ok(WatchEvent::Reset(vec![readable("a")])));
    drain(&mut tracker);
    assert!(tracker.handle_discovery(Err(outage())).is_empty());
    handle(&mut tracker, LEGACY, Err(outage()));
    assert_eq!(drain(&mut tracker), ["1 served, complete, away"]);
    assert_eq!(tracker.handle_discovery(Ok(groups(&[LEGACY]))), REWRITE_GROUPS);
    handle(&mut tracker, LEGACY, Ok(WatchEvent::Reset(vec![readable("a"), readable("b")])));
    assert_eq!(drain(&mut tracker), ["inference.networking.x-k8s.io has 2", "1 served, complete"]);
}

#[test]
fn changes_are_delivered_without_unparsable_objects() {
    let mut tracker = RewriteTracker::default();
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Apply(readable("a"))));
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Apply(object("b"))));
    handle(&mut tracker, CURRENT, Ok(WatchEvent::Delete(object("b"))));
    assert_eq!(drain(&mut tracker), ["apply llm-d.ai a", "delete llm-d.ai prod/b"]);
}

#[test]
fn unknown_fields_are_preserved() {
    let rewrite = parse_rewrite(CURRENT, readable("a")).unwrap();
    let written = serde_json::to_value(&rewrite).unwrap();
    assert_eq!(written["spec"]["later"], true);
    assert_eq!(written["metadata"]["labels"]["team"], "x");
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    assert_eq!(written["apiVersion"], "llm-d.ai/v1alpha2");
}
