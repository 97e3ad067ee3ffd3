use super::*;
use rollora_api::names::sequence_annotation;
use rollora_api::rollout::IntentKind;

/// A Rollout as a person writes it, for every test of this crate.
pub(crate) const ROLLOUT_FILE: &str = "apiVersion: rollora.dev/v1alpha1
kind: Rollout
metadata: { name: alias }
spec:
  model: alias
  poolRef: { name: pool }
  adapter: { follow: { pattern: 'alias-v*' } }
  adaptersRef: { name: adapters }
";

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn rollout_file() -> Rollout {
    Rollout::from_yaml(ROLLOUT_FILE).unwrap()
}

pub(crate) fn sample_snapshot() -> StoreSnapshot {
    let text = AdaptersText::new("vLLMLoRAConfig: {}\n", "configmap.yaml").unwrap();
    let parsed = text.parse().unwrap();
    StoreSnapshot {
        rollout: Arc::new(new_rollout(&rollout_file(), "uid", now())),
        rewrites: Arc::default(),
        adapters: AdaptersContent { text: Arc::new(text), file: Arc::new(parsed.file) },
        directives: DirectivesContent::default(),
        events: Arc::default(),
        problems: FileProblems::default(),
    }
}

fn rewrite(weight: i32) -> InferenceModelRewrite {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": { "name": "alias", "annotations": { sequence_annotation("uid"): "1" } },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{ "targets": [{ "modelRewrite": "v1", "weight": weight }] }] },
    }))
    .unwrap()
}

fn intent(id: &str, verb: IntentKind) -> Intent {
    Intent { id: id.to_owned(), verb, revision: 1, step: None, claimed_by: None }
}

#[test]
fn status_write_requires_the_current_version() {
    let mut snapshot = sample_snapshot();
    let read = resource_version(&snapshot.rollout.metadata);
    let written = snapshot.with_status(&read, &RolloutStatus::default()).unwrap();
    assert_eq!((written.metadata.generation, written.metadata.uid.as_deref()), (Some(1), Some("uid")));
    snapshot.rollout = Arc::new(written);
    assert_eq!(snapshot.with_status(&read, &RolloutStatus::default()), Err(WriteOutcome::Conflict));
}

#[test]
fn rewrite_write_requires_the_current_version() {
    let mut snapshot = sample_snapshot();
    let (created, first) = snapshot.with_rewrite(&rewrite(10), &Precondition::Absent, "created", now()).unwrap();
    assert_eq!(
        (created[0].metadata.uid.as_deref(), created[0].metadata.creation_timestamp),
        (Some("created"), Some(now()))
    );
    snapshot.rewrites = Arc::new(created);
    let unchanged = Precondition::Unchanged(first);
    assert_eq!(
        snapshot.with_rewrite(&rewrite(20), &Precondition::Absent, "x", now()).unwrap_err(),
        WriteOutcome::Conflict
    );

    let (replaced, _) = snapshot.with_rewrite(&rewrite(20), &unchanged, "x", now()).unwrap();
    assert_eq!((replaced.len(), replaced[0].metadata.uid.as_deref()), (1, Some("created")));
    assert_eq!(replaced[0].metadata.generation, Some(2));
    snapshot.rewrites = Arc::new(replaced);
    assert_eq!(snapshot.with_rewrite(&rewrite(30), &unchanged, "x", now()).unwrap_err(), WriteOutcome::Conflict);
}

#[test]
fn rewrites_of_the_two_api_groups_are_separate_objects() {
    let mut snapshot = sample_snapshot();
    let (created, _) = snapshot.with_rewrite(&rewrite(10), &Precondition::Absent, "1", now()).unwrap();
    snapshot.rewrites = Arc::new(created);
    let mut legacy = rewrite(10);
    legacy.api_version = "inference.networking.x-k8s.io/v1alpha2".to_owned();
    let (both, _) = snapshot.with_rewrite(&legacy, &Precondition::Absent, "2", now()).unwrap();
    assert_eq!(both.len(), 2);
}

#[test]
fn only_abort_replaces_a_pending_intent() {
    let mut snapshot = sample_snapshot();
    snapshot.rollout = Arc::new(snapshot.with_intent(&intent("1", IntentKind::Promote)).unwrap());
    let refused = snapshot.with_intent(&intent("2", IntentKind::PromoteFull)).unwrap_err().to_string();
    assert_eq!(refused, "`promote` was requested before and is still pending: wait for its outcome, or abort");
    snapshot.rollout = Arc::new(snapshot.with_intent(&intent("3", IntentKind::Abort)).unwrap());

    let last = rollora_api::rollout::status::LastAction {
        id: "3".to_owned(),
        verb: IntentKind::Abort,
        claimed_by: None,
        at: now(),
        outcome: String::new(),
    };
    let consumed = RolloutStatus { last_action: Some(last), ..RolloutStatus::default() };
    let version = resource_version(&snapshot.rollout.metadata);
    snapshot.rollout = Arc::new(snapshot.with_status(&version, &consumed).unwrap());
    assert!(snapshot.with_intent(&intent("4", IntentKind::Promote)).is_ok());
}

#[test]
fn only_spec_changes_increase_the_generation() {
    let stored = new_rollout(&rollout_file(), "uid", now());
    assert_eq!(updated_rollout(&stored, &rollout_file()), Ok(None));

    let mut labeled = rollout_file();
    labeled.metadata.labels.insert("team".to_owned(), "a".to_owned());
    let changed = updated_rollout(&stored, &labeled).unwrap().unwrap();
    assert_eq!((changed.metadata.generation, changed.metadata.resource_version.as_deref()), (Some(1), Some("2")));

    let mut paused = rollout_file();
    paused.spec.paused = true;
    let changed = updated_rollout(&stored, &paused).unwrap().unwrap();
    assert_eq!((changed.metadata.generation, changed.metadata.uid.as_deref()), (Some(2), Some("uid")));
}

#[test]
fn file_changes_neither_status_nor_intent() {
    let mut snapshot = sample_snapshot();
    snapshot.rollout = Arc::new(snapshot.with_intent(&intent("1", IntentKind::Promote)).unwrap());
    let version = resource_version(&snapshot.rollout.metadata);
    let status = RolloutStatus { message: "ours".to_owned(), ..RolloutStatus::default() };
    let stored = snapshot.with_status(&version, &status).unwrap();

    let mut given = rollout_file();
    given.spec.paused = true;
    given.status = Some(RolloutStatus { message: "theirs".to_owned(), ..RolloutStatus::default() });
    given.metadata.annotations.insert(INTENT_ANNOTATION.to_owned(), "theirs".to_owned());
    given.metadata.uid = Some("theirs".to_owned());
    let changed = updated_rollout(&stored, &given).unwrap().unwrap();
    assert_eq!(changed.status, Some(status));
    assert_eq!(changed.metadata.uid.as_deref(), Some("uid"));
    assert_eq!(changed.metadata.annotations, stored.metadata.annotations);
}

#[test]
fn changes_of_immutable_fields_are_refused() {
    let stored = new_rollout(&rollout_file(), "uid", now());
    let other = || "other".to_owned();
    let (mut name, mut model, mut pool, mut rewrite) = (rollout_file(), rollout_file(), rollout_file(), rollout_file());
    name.metadata.name = other();
    model.spec.model = "other".parse().unwrap();
    pool.spec.pool_ref.name = other();
    rewrite.spec.rewrite_ref = Some(rollora_api::rollout::spec::RewriteRef { name: other() });
    for (field, edited) in
        [("metadata.name", name), ("spec.model", model), ("spec.poolRef", pool), ("spec.rewriteRef", rewrite)]
    {
        let errors = updated_rollout(&stored, &edited).unwrap_err();
        assert_eq!(errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), [field]);
    }
}

#[test]
fn last_events_are_kept_and_repetitions_are_counted() {
    let mut snapshot = sample_snapshot();
    let event = |message: String| EventRecord { at: now(), count: 1, warning: false, reason: "X".to_owned(), message };
    for number in 0..60 {
        snapshot.events = Arc::new(snapshot.with_event(event(number.to_string())));
    }
    snapshot.events = Arc::new(snapshot.with_event(event("59".to_owned())));
    assert_eq!(snapshot.events.len(), MAX_EVENTS);
    let last = snapshot.events.back().unwrap();
    assert_eq!((last.message.as_str(), last.count), ("59", 2));
}
