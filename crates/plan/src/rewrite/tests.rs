//! Tests of the edits of rewrites: what changes, and what stays.

use super::*;
use proptest::prelude::*;
use rollora_api::rollout::status::TargetWeight;
use serde_json::{Value, json};

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn weights(sequence: i64, targets: &[(&str, i32)]) -> TrafficWeights {
    let target = |(name, weight): &(&str, i32)| TargetWeight { id: id(name), weight: *weight };
    TrafficWeights {
        desired: targets.iter().map(target).collect(),
        sequence: Sequence(sequence),
        ..TrafficWeights::default()
    }
}

fn edit(current: Option<&InferenceModelRewrite>, weights: &TrafficWeights) -> Option<InferenceModelRewrite> {
    edit_with(current, weights, None)
}

fn edit_with(
    current: Option<&InferenceModelRewrite>,
    weights: &TrafficWeights,
    sticky_header: Option<&str>,
) -> Option<InferenceModelRewrite> {
    let (model, pool) = (ModelName::new("small").unwrap(), PoolRef { name: "pool".to_owned(), ..PoolRef::default() });
    let stable = id("v1");
    let desired = DesiredRewrite {
        name: "small",
        group: RewriteGroup::Current,
        namespace: Some("here"),
        model: &model,
        pool: &pool,
        rollout_uid: "uid",
        weights,
        stable: Some(&stable),
        sticky_header,
    };
    updated(current, desired)
}

fn rewrite(rules: &Value) -> InferenceModelRewrite {
    serde_json::from_value(json!({
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": {"name": "small", "labels": {"team": "a"}, "managedFields": [1]},
        "spec": {"poolRef": {"name": "pool"}, "rules": rules, "later": true},
    }))
    .unwrap()
}

fn rules(rewrite: &InferenceModelRewrite) -> Value {
    serde_json::to_value(&rewrite.spec.rules).unwrap()
}

fn exact(name: &str) -> Value {
    json!({"model": {"type": "Exact", "value": name}})
}

#[test]
fn missing_rewrite_is_created_with_stamp_and_weight_100() {
    let created = edit(None, &weights(1, &[("v1", 7)])).unwrap();
    assert_eq!(
        rules(&created),
        json!([{"matches": [exact("small")], "targets": [{"modelRewrite": "v1", "weight": 100}]}])
    );
    assert_eq!(created.metadata.annotations["weights.rollora.dev/uid"], "1");
    assert_eq!(created.group(), Some(RewriteGroup::Current));
    assert_eq!(created.metadata.namespace.as_deref(), Some("here"));
}

#[test]
fn unchanged_rewrite_needs_no_edit() {
    for targets in [vec![("v1", 100)], vec![("v1", 90), ("v2", 10)]] {
        let weights = weights(3, &targets);
        let written = edit(None, &weights).unwrap();
        assert_eq!(edit(Some(&written), &weights), None);
    }
}

#[test]
fn only_the_exact_rule_for_the_model_changes() {
    let others = [
        json!({"matches": [exact("other")], "targets": [{"modelRewrite": "x"}]}),
        json!({"targets": [{"modelRewrite": "generic"}]}),
    ];
    let ours = json!({"matches": [exact("small")], "targets": [{"modelRewrite": "v1", "note": "kept"}], "later": 1});
    let current = rewrite(&json!([others[0], ours, others[1]]));
    let edited = edit(Some(&current), &weights(2, &[("v1", 90), ("v2", 10)])).unwrap();
    let rule = json!({
        "matches": [exact("small")],
        "targets": [{"modelRewrite": "v1", "weight": 90, "note": "kept"}, {"modelRewrite": "v2", "weight": 10}],
        "later": 1,
    });
    assert_eq!(rules(&edited), json!([others[0], rule, others[1]]));
    assert_eq!(edited.metadata.labels, current.metadata.labels);
    assert_eq!(edited.metadata.other, current.metadata.other);
    assert_eq!(edited.spec.other, current.spec.other);
}

#[test]
fn rule_with_other_names_is_split_in_one_write() {
    let targets = json!([{"modelRewrite": "v1"}]);
    let current = rewrite(&json!([{"matches": [exact("other"), exact("small")], "targets": targets}]));
    let edited = edit(Some(&current), &weights(1, &[("v2", 100)])).unwrap();
    let expected = json!([
        {"matches": [exact("small")], "targets": [{"modelRewrite": "v2", "weight": 100}]},
        {"matches": [exact("other")], "targets": targets},
    ]);
    assert_eq!(rules(&edited), expected);
}

#[test]
fn rule_with_duplicate_matches_never_becomes_generic() {
    let current = rewrite(&json!([{"matches": [exact("small"), exact("small")], "targets": []}]));
    let edited = edit(Some(&current), &weights(1, &[("v2", 100)])).unwrap();
    assert_eq!(edited.spec.rules.len(), 1);
    assert_eq!(edited.spec.rules[0].matches.len(), 1);
}

#[test]
fn stable_is_annotated_only_for_two_targets() {
    let split = edit(None, &weights(1, &[("v1", 50), ("v2", 50)])).unwrap();
    assert_eq!(split.metadata.annotations[STABLE_ANNOTATION], "v1");
    let single = edit(Some(&split), &weights(2, &[("v2", 100)])).unwrap();
    assert!(!single.metadata.annotations.contains_key(STABLE_ANNOTATION));
}

#[test]
fn rollouts_sharing_a_rewrite_keep_each_others_annotations() {
    let other = |weights: &TrafficWeights, current: Option<&InferenceModelRewrite>| {
        let model = ModelName::new("large").unwrap();
        let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
        let stable = weights.desired.first().map(|target| target.id.clone());
        let desired = DesiredRewrite {
            name: "small",
            group: RewriteGroup::Current,
            namespace: None,
            model: &model,
            pool: &pool,
            rollout_uid: "other",
            weights,
            stable: stable.as_ref(),
            sticky_header: None,
        };
        updated(current, desired)
    };
    let (split, theirs) = (weights(1, &[("v1", 50), ("v2", 50)]), weights(1, &[("w1", 90), ("w2", 10)]));
    let ours = edit_with(None, &split, Some("x-session-id")).unwrap();
    let both = other(&theirs, Some(&ours)).unwrap();
    assert_eq!(both.metadata.annotations[STABLE_ANNOTATION], "v1,w1");
    assert_eq!(both.metadata.annotations[STICKY_HEADER_ANNOTATION], "x-session-id");
    assert_eq!(edit_with(Some(&both), &split, Some("x-session-id")), None);
    assert_eq!(other(&theirs, Some(&both)), None);
    let single = edit_with(Some(&both), &weights(2, &[("v2", 100)]), Some("x-session-id")).unwrap();
    assert_eq!(single.metadata.annotations[STABLE_ANNOTATION], "w1");
}

#[test]
fn foreign_pool_change_is_reverted() {
    let weights = weights(1, &[("v1", 100)]);
    let written = edit(None, &weights).unwrap();
    let mut changed = written.clone();
    changed.spec.pool_ref.name = "another".to_owned();
    assert_eq!(edit(Some(&changed), &weights), Some(written));
}

#[test]
fn sticky_header_follows_the_spec() {
    let weights = weights(1, &[("v1", 100)]);
    let with = edit_with(None, &weights, Some("x-session-id")).unwrap();
    assert_eq!(with.metadata.annotations[STICKY_HEADER_ANNOTATION], "x-session-id");
    let without = edit(Some(&with), &weights).unwrap();
    assert!(!without.metadata.annotations.contains_key(STICKY_HEADER_ANNOTATION));
}

#[test]
fn current_group_wins_and_deleted_rewrites_are_ignored() {
    let current = rewrite(&json!([]));
    let legacy =
        InferenceModelRewrite { api_version: RewriteGroup::Legacy.api_version().to_owned(), ..current.clone() };
    let both = [legacy, current];
    assert_eq!(find("small", None, &both).and_then(InferenceModelRewrite::group), Some(RewriteGroup::Current));
    let mut terminating = both;
    for rewrite in &mut terminating {
        rewrite.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH);
    }
    assert_eq!(find("small", None, &terminating), None);
}

fn any_rule() -> impl Strategy<Value = Value> {
    let name = prop_oneof![Just("small"), Just("other"), Just("third")];
    let target = ("[a-z]{1,3}", prop::option::of(1..100_i32));
    (prop::collection::vec(name, 0..3), prop::collection::vec(target, 0..3)).prop_map(|(names, targets)| {
        let matches: Vec<_> = names.into_iter().map(exact).collect();
        let targets: Vec<_> =
            targets.into_iter().map(|(id, weight)| json!({"modelRewrite": id, "weight": weight})).collect();
        json!({"matches": matches, "targets": targets})
    })
}

/// Returns the targets of the active rule for a name: exact before generic, earlier before later.
fn active_rule<'a>(rules: &'a [RewriteRule], name: &str) -> Option<&'a [RewriteTarget]> {
    let model = ModelName::new(name).unwrap();
    let matches = |rule: &&RewriteRule| rule.matches.iter().any(|candidate| is_exact(candidate, &model));
    let exact = rules.iter().find(matches);
    exact.or_else(|| rules.iter().find(|rule| rule.matches.is_empty())).map(|rule| rule.targets.as_slice())
}

proptest! {
    #[test]
    fn edit_sets_our_weights_and_keeps_other_names(
        before in prop::collection::vec(any_rule(), 0..5),
        weight in 1..100_i32,
    ) {
        let current = rewrite(&json!(before));
        let split = weights(1, &[("v1", 100 - weight), ("v2", weight)]);
        let edited = edit(Some(&current), &split).unwrap();
        let got = active_rule(&edited.spec.rules, "small").unwrap();
        prop_assert!(same_targets(got, &split.desired));
        for name in ["other", "third", "unheard-of"] {
            prop_assert_eq!(active_rule(&edited.spec.rules, name), active_rule(&current.spec.rules, name));
        }
        prop_assert_eq!(edit(Some(&edited), &split), None);
    }
}
