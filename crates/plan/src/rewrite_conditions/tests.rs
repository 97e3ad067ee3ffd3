//! Tests of the conditions of rewrites: precedence, messages, and what is written.

use super::*;
use rollora_api::{
    metadata::ObjectMeta,
    rewrite::{ModelMatch, RewriteMatch, RewriteRule, RewriteSpec},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Returns a rewrite of the pool, created at `second`, with a rule for each of `models`; an empty name makes a generic
/// rule.
fn rewrite(group: RewriteGroup, name: &str, second: i64, models: &[&str]) -> InferenceModelRewrite {
    let rule = |model: &&str| {
        let exact =
            RewriteMatch { model: ModelMatch { type_: None, value: (*model).to_owned() }, ..RewriteMatch::default() };
        let matches = if model.is_empty() { Vec::new() } else { vec![exact] };
        RewriteRule { matches, ..RewriteRule::default() }
    };
    InferenceModelRewrite {
        api_version: group.api_version().to_owned(),
        kind: "InferenceModelRewrite".to_owned(),
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            creation_timestamp: Some(at(second)),
            ..ObjectMeta::named(name)
        },
        spec: RewriteSpec {
            pool_ref: PoolRef { name: "pool".to_owned(), ..PoolRef::default() },
            rules: models.iter().map(rule).collect(),
            ..RewriteSpec::default()
        },
        status: None,
    }
}

fn current(name: &str, second: i64, models: &[&str]) -> InferenceModelRewrite {
    rewrite(RewriteGroup::Current, name, second, models)
}

fn legacy(name: &str, second: i64, models: &[&str]) -> InferenceModelRewrite {
    rewrite(RewriteGroup::Legacy, name, second, models)
}

fn pools() -> BTreeSet<String> {
    BTreeSet::from(["pool".to_owned()])
}

/// Returns, for each rewrite that is written, its name and its conditions as `Type=Status/Reason: message`.
fn written_conditions(rewrites: &[InferenceModelRewrite]) -> Vec<(String, Vec<String>)> {
    let text = |condition: &Condition| {
        let Condition { type_: kind, status, reason, message, .. } = condition;
        format!("{kind}={status:?}/{reason}: {message}")
    };
    let written = update_conditions(rewrites, Some(&pools()), at(100));
    let each = written.into_iter().map(|rewrite| {
        let conditions = rewrite.status.unwrap_or_default().conditions;
        (rewrite.metadata.name, conditions.iter().map(text).collect())
    });
    each.collect()
}

#[track_caller]
fn check(rewrites: &[InferenceModelRewrite], expected: &[(&str, &str, &str)]) {
    let found = written_conditions(rewrites);
    let found: Vec<(&str, &str, &str)> = found
        .iter()
        .map(|(name, conditions)| (name.as_str(), conditions[0].as_str(), conditions[1].as_str()))
        .collect();
    assert_eq!(found, expected);
}

const ALL_ACTIVE: &str = "Conflicted=False/NoConflict: every rule of this rewrite is active";

#[test]
fn rewrite_without_conflicts_is_active() {
    check(
        &[current("a", 1, &["chat", ""]), current("none", 1, &[])],
        &[
            ("a", "Accepted=True/Accepted: active for chat, every model without its own rule", ALL_ACTIVE),
            ("none", "Accepted=True/Accepted: this rewrite has no rules", ALL_ACTIVE),
        ],
    );
}

#[test]
fn older_rewrite_is_active_then_the_first_by_name() {
    for (first, second) in [((2, "b"), (3, "a")), ((2, "a"), (2, "b"))] {
        let rewrites = [current(second.1, second.0, &["chat", "own"]), current(first.1, first.0, &["chat"])];
        let why = format!("chat: rule 1 of ns/{}, which takes precedence, is active", first.1);
        check(
            &rewrites,
            &[
                (second.1, "Accepted=True/Accepted: active for own", &format!("Conflicted=True/ShadowedBy: {why}")),
                (first.1, "Accepted=True/Accepted: active for chat", ALL_ACTIVE),
            ],
        );
    }
}

#[test]
fn fully_shadowed_rewrite_is_not_accepted() {
    check(
        &[current("new", 2, &["chat"]), current("old", 1, &["chat"])],
        &[
            (
                "new",
                "Accepted=False/ShadowedBy: no rule of this rewrite is active; chat: rule 1 of ns/old, which takes \
                 precedence, is active",
                "Conflicted=True/ShadowedBy: chat: rule 1 of ns/old, which takes precedence, is active",
            ),
            ("old", "Accepted=True/Accepted: active for chat", ALL_ACTIVE),
        ],
    );
}

#[test]
fn generic_rule_of_current_group_precedes_legacy_group() {
    let why = "chat: rule 1 of ns/new of the API group llm-d.ai is active";
    check(
        &[legacy("old", 1, &["chat"]), current("new", 2, &[""])],
        &[
            (
                "old",
                &format!("Accepted=False/ShadowedBy: no rule of this rewrite is active; {why}"),
                &format!("Conflicted=True/ShadowedBy: {why}"),
            ),
            ("new", "Accepted=True/Accepted: active for every model without its own rule", ALL_ACTIVE),
        ],
    );
}

#[test]
fn exact_rule_does_not_conflict_with_a_generic_one() {
    let found = written_conditions(&[current("generic", 1, &[""]), current("exact", 2, &["chat"])]);
    assert!(found.iter().all(|(_, conditions)| conditions[1] == ALL_ACTIVE), "{found:?}");
}

#[test]
fn repeated_rule_of_the_same_rewrite_is_reported() {
    let found = written_conditions(&[current("a", 1, &["chat", "chat"])]);
    assert_eq!(found[0].1[1], "Conflicted=True/ShadowedBy: chat: rule 1 of the same rewrite is active");
}

#[test]
fn deleted_or_other_pool_rewrites_shadow_nothing() {
    let mut terminating = current("going", 1, &["chat"]);
    terminating.metadata.deletion_timestamp = Some(at(9));
    let mut other = current("other", 1, &["chat"]);
    other.spec.pool_ref.name = "other".to_owned();
    let found = written_conditions(&[terminating, other, current("a", 2, &["chat"])]);
    let pending = "there is no InferencePool other: create it, or fix spec.poolRef";
    assert_eq!(found[0], ("other".to_owned(), vec![format!("Accepted=Unknown/Pending: {pending}")]));
    assert_eq!(found[1].1, ["Accepted=True/Accepted: active for chat", ALL_ACTIVE]);
    assert_eq!(found.len(), 2, "a rewrite that is being deleted is not written");
}

#[test]
fn unchanged_conditions_are_not_written_again() {
    let first = update_conditions(&[current("a", 1, &["chat"])], Some(&pools()), at(100));
    assert_eq!(first.len(), 1);
    let mut again = first[0].clone();
    again.metadata.generation = Some(7);
    again.spec.rules[0].targets.push(rollora_api::rewrite::RewriteTarget::default());
    assert_eq!(update_conditions(&[again], Some(&pools()), at(200)), []);
}

#[test]
fn foreign_conditions_stay_and_times_follow_status_changes() {
    let foreign = Condition {
        type_: "Programmed".to_owned(),
        status: ConditionStatus::True,
        reason: "Yes".to_owned(),
        message: String::new(),
        last_transition_time: at(1),
        observed_generation: Some(3),
    };
    let pending = Condition {
        type_: ACCEPTED.to_owned(),
        status: ConditionStatus::Unknown,
        reason: reason::PENDING.to_owned(),
        ..foreign.clone()
    };
    // The initial status of upstream's schema, not sorted.
    let mut initial = current("a", 1, &["chat"]);
    initial.status = Some(RewriteStatus { conditions: vec![foreign.clone(), pending] });
    let updated = update_conditions(&[initial], Some(&pools()), at(100)).remove(0);
    let conditions = updated.status.clone().unwrap().conditions;
    assert_eq!(conditions[0], foreign);
    assert_eq!((conditions[1].status, conditions[1].last_transition_time), (ConditionStatus::True, at(100)));
    let mut more = updated;
    more.spec.rules.extend(current("x", 1, &["own"]).spec.rules);
    let updated = update_conditions(&[more], Some(&pools()), at(200)).remove(0);
    let accepted = &updated.status.unwrap().conditions[1];
    assert_eq!((accepted.message.as_str(), accepted.last_transition_time), ("active for chat, own", at(100)));
}

#[test]
fn unknown_pools_change_no_conditions() {
    assert_eq!(update_conditions(&[current("a", 1, &["chat"])], None, at(1)), []);
    let mut other = current("a", 1, &["chat"]);
    other.spec.pool_ref.group = "inference.networking.x-k8s.io".to_owned();
    assert_eq!(update_conditions(&[other], Some(&pools()), at(1)), [], "a pool of another API group");
}
