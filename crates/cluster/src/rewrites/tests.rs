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

fn hear(digest: &mut Digest, group: RewriteGroup, news: Result<News<DynamicObject>, ApiError>) {
    digest.hear(group, news.map(|news| news.map(|object| Found::of(group, object))));
}

fn groups(groups: &[RewriteGroup]) -> BTreeSet<RewriteGroup> {
    groups.iter().copied().collect()
}

fn away() -> ApiError {
    ApiError::Unavailable("away".to_owned())
}

/// What was told since, a word each.
fn told(digest: &mut Digest) -> Vec<String> {
    let words = |news| match news {
        RewriteNews::Reset { group, rewrites } => format!("{} has {}", group.name(), rewrites.len()),
        RewriteNews::Apply(rewrite) => format!("apply {} {}", rewrite.group().unwrap().name(), rewrite.metadata.name),
        RewriteNews::Delete { group, namespace, name } => format!("delete {} {namespace}/{name}", group.name()),
        RewriteNews::State(state) => format!(
            "{} served{}{}",
            state.served.len(),
            if state.complete { ", complete" } else { "" },
            state.problem.map(|problem| format!(", {problem}")).unwrap_or_default()
        ),
    };
    digest.told.drain(..).map(words).collect()
}

#[test]
fn it_is_complete_when_every_group_that_is_installed_was_told_whole() {
    let mut digest = Digest::default();
    digest.look(Ok(groups(&GROUPS)));
    assert_eq!(told(&mut digest), ["2 served"]);
    hear(&mut digest, LEGACY, Ok(News::Reset(vec![readable("a")])));
    assert_eq!(told(&mut digest), ["inference.networking.x-k8s.io has 1"]);
    hear(&mut digest, CURRENT, Ok(News::Reset(Vec::new())));
    assert_eq!(told(&mut digest), ["llm-d.ai has 0", "2 served, complete"]);
}

#[test]
fn it_is_complete_at_once_where_no_group_is_installed() {
    let mut digest = Digest::default();
    digest.look(Ok(groups(&[])));
    assert_eq!(told(&mut digest), ["0 served, complete"]);
}

#[test]
fn a_group_that_is_installed_later_takes_nothing_away_from_the_other() {
    let mut digest = Digest::default();
    digest.look(Ok(groups(&[LEGACY])));
    hear(&mut digest, LEGACY, Ok(News::Reset(vec![readable("a")])));
    told(&mut digest);
    assert!(digest.look(Ok(groups(&GROUPS))).is_empty(), "no watch that runs is touched");
    assert_eq!(told(&mut digest), ["2 served, complete"]);
    hear(&mut digest, CURRENT, Ok(News::Reset(vec![readable("b")])));
    assert_eq!(told(&mut digest), ["llm-d.ai has 1"]);
}

#[test]
fn a_group_that_is_removed_is_empty() {
    let mut digest = Digest::default();
    digest.look(Ok(groups(&GROUPS)));
    hear(&mut digest, CURRENT, Ok(News::Reset(vec![readable("b")])));
    hear(&mut digest, CURRENT, Err(ApiError::NotFound("gone".to_owned())));
    told(&mut digest);
    assert_eq!(digest.look(Ok(groups(&[LEGACY]))), [CURRENT]);
    assert_eq!(told(&mut digest), ["llm-d.ai has 0", "1 served"]);
}

#[test]
fn an_outage_takes_nothing_away_and_after_it_every_watch_begins_anew() {
    let mut digest = Digest::default();
    digest.look(Ok(groups(&[LEGACY])));
    hear(&mut digest, LEGACY, Ok(News::Reset(vec![readable("a")])));
    told(&mut digest);
    assert!(digest.look(Err(away())).is_empty());
    hear(&mut digest, LEGACY, Err(away()));
    assert_eq!(told(&mut digest), ["1 served, complete, away"]);
    assert_eq!(digest.look(Ok(groups(&[LEGACY]))), GROUPS);
    hear(&mut digest, LEGACY, Ok(News::Reset(vec![readable("a"), readable("b")])));
    assert_eq!(told(&mut digest), ["inference.networking.x-k8s.io has 2", "1 served, complete"]);
}

#[test]
fn changes_are_handed_over_one_by_one_and_what_cannot_be_read_is_left_out() {
    let mut digest = Digest::default();
    hear(&mut digest, CURRENT, Ok(News::Apply(readable("a"))));
    hear(&mut digest, CURRENT, Ok(News::Apply(object("b"))));
    hear(&mut digest, CURRENT, Ok(News::Delete(object("b"))));
    assert_eq!(told(&mut digest), ["apply llm-d.ai a", "delete llm-d.ai prod/b"]);
}

#[test]
fn fields_that_are_not_known_are_kept() {
    let rewrite = read(CURRENT, readable("a")).unwrap();
    let written = serde_json::to_value(&rewrite).unwrap();
    assert_eq!(written["spec"]["later"], true);
    assert_eq!(written["metadata"]["labels"]["team"], "x");
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    assert_eq!(written["apiVersion"], "llm-d.ai/v1alpha2");
}
