use super::*;
use rollora_api::{
    metadata::ObjectMeta,
    rewrite::{ModelMatch, RewriteMatch, RewriteRule, RewriteSpec},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A rewrite of the pool, made at `second`, with a rule for each of `models`; an empty one is generic.
fn rewrite(group: RewriteGroup, name: &str, second: i64, models: &[&str]) -> InferenceModelRewrite {
    let rule = |model: &&str| {
        let exactly =
            RewriteMatch { model: ModelMatch { type_: None, value: (*model).to_owned() }, ..RewriteMatch::default() };
        let matches = if model.is_empty() { Vec::new() } else { vec![exactly] };
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

/// Per rewrite that is written: its name, and each condition as `Type=Status/Reason: message`.
fn written_conditions(rewrites: &[InferenceModelRewrite]) -> Vec<(String, Vec<String>)> {
    let words = |condition: &Condition| {
        let Condition { type_: kind, status, reason, message, .. } = condition;
        format!("{kind}={status:?}/{reason}: {message}")
    };
    let written = update_conditions(rewrites, Some(&pools()), at(100));
    let each = written.into_iter().map(|rewrite| {
        let conditions = rewrite.status.unwrap_or_default().conditions;
        (rewrite.metadata.name, conditions.iter().map(words).collect())
    });
    each.collect()
}

#[track_caller]
fn check(rewrites: &[InferenceModelRewrite], expected: &[(&str, &str, &str)]) {
    let found = written_conditions(rewrites);
    let found: Vec<(&str, &str, &str)> =
        found.iter().map(|(name, said)| (name.as_str(), said[0].as_str(), said[1].as_str())).collect();
    assert_eq!(found, expected);
}

const ALL_ACTIVE: &str = "Conflicted=False/NoConflict: every rule of it is in force";

#[test]
fn one_that_nobody_hinders_is_in_force() {
    check(
        &[current("a", 1, &["chat", ""]), current("none", 1, &[])],
        &[
            ("a", "Accepted=True/Accepted: in force for chat, every other name", ALL_ACTIVE),
            ("none", "Accepted=True/Accepted: it has no rules", ALL_ACTIVE),
        ],
    );
}

#[test]
fn of_two_the_older_one_is_in_force_and_of_the_same_second_the_first_by_name() {
    for (first, second) in [((2, "b"), (3, "a")), ((2, "a"), (2, "b"))] {
        let rewrites = [current(second.1, second.0, &["chat", "own"]), current(first.1, first.0, &["chat"])];
        let why = format!("chat: rule 1 of ns/{}, which goes first, is in force", first.1);
        check(
            &rewrites,
            &[
                (second.1, "Accepted=True/Accepted: in force for own", &format!("Conflicted=True/ShadowedBy: {why}")),
                (first.1, "Accepted=True/Accepted: in force for chat", ALL_ACTIVE),
            ],
        );
    }
}

#[test]
fn one_of_which_nothing_is_in_force_is_not_accepted() {
    check(
        &[current("new", 2, &["chat"]), current("old", 1, &["chat"])],
        &[
            (
                "new",
                "Accepted=False/ShadowedBy: no rule of it is in force; chat: rule 1 of ns/old, which goes first, is in force",
                "Conflicted=True/ShadowedBy: chat: rule 1 of ns/old, which goes first, is in force",
            ),
            ("old", "Accepted=True/Accepted: in force for chat", ALL_ACTIVE),
        ],
    );
}

#[test]
fn the_current_group_goes_before_the_legacy_one_also_with_a_generic_rule() {
    let why = "chat: rule 1 of ns/new of the group llm-d.ai is in force";
    check(
        &[legacy("old", 1, &["chat"]), current("new", 2, &[""])],
        &[
            (
                "old",
                &format!("Accepted=False/ShadowedBy: no rule of it is in force; {why}"),
                &format!("Conflicted=True/ShadowedBy: {why}"),
            ),
            ("new", "Accepted=True/Accepted: in force for every other name", ALL_ACTIVE),
        ],
    );
}

#[test]
fn an_exact_rule_beside_a_generic_one_is_no_conflict() {
    let found = written_conditions(&[current("generic", 1, &[""]), current("exact", 2, &["chat"])]);
    assert!(found.iter().all(|(_, said)| said[1] == ALL_ACTIVE), "{found:?}");
}

#[test]
fn a_rule_that_repeats_one_of_the_same_object_is_named() {
    let found = written_conditions(&[current("a", 1, &["chat", "chat"])]);
    assert_eq!(found[0].1[1], "Conflicted=True/ShadowedBy: chat: rule 1 of the same object is in force");
}

#[test]
fn one_that_is_being_deleted_or_of_another_pool_hinders_nobody() {
    let mut going = current("going", 1, &["chat"]);
    going.metadata.deletion_timestamp = Some(at(9));
    let mut other = current("other", 1, &["chat"]);
    other.spec.pool_ref.name = "other".to_owned();
    let found = written_conditions(&[going, other, current("a", 2, &["chat"])]);
    let pending = "there is no InferencePool other: make it, or mend spec.poolRef";
    assert_eq!(found[0], ("other".to_owned(), vec![format!("Accepted=Unknown/Pending: {pending}")]));
    assert_eq!(found[1].1, ["Accepted=True/Accepted: in force for chat", ALL_ACTIVE]);
    assert_eq!(found.len(), 2, "what is being deleted is left alone");
}

#[test]
fn what_is_said_already_is_not_written_again_and_a_weight_changes_nothing() {
    let first = update_conditions(&[current("a", 1, &["chat"])], Some(&pools()), at(100));
    assert_eq!(first.len(), 1);
    let mut again = first[0].clone();
    again.metadata.generation = Some(7);
    again.spec.rules[0].targets.push(rollora_api::rewrite::RewriteTarget::default());
    assert_eq!(update_conditions(&[again], Some(&pools()), at(200)), []);
}

#[test]
fn conditions_of_others_stay_and_the_time_changes_with_the_status_only() {
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
    // As upstream's schema begins it, and not sorted.
    let mut beginning = current("a", 1, &["chat"]);
    beginning.status = Some(RewriteStatus { conditions: vec![foreign.clone(), pending] });
    let told = update_conditions(&[beginning], Some(&pools()), at(100)).remove(0);
    let conditions = told.status.clone().unwrap().conditions;
    assert_eq!(conditions[0], foreign);
    assert_eq!((conditions[1].status, conditions[1].last_transition_time), (ConditionStatus::True, at(100)));
    let mut more = told;
    more.spec.rules.extend(current("x", 1, &["own"]).spec.rules);
    let told = update_conditions(&[more], Some(&pools()), at(200)).remove(0);
    let accepted = &told.status.unwrap().conditions[1];
    assert_eq!((accepted.message.as_str(), accepted.last_transition_time), ("in force for chat, own", at(100)));
}

#[test]
fn nothing_is_said_while_it_is_not_known_which_pools_there_are() {
    assert_eq!(update_conditions(&[current("a", 1, &["chat"])], None, at(1)), []);
    let mut other = current("a", 1, &["chat"]);
    other.spec.pool_ref.group = "inference.networking.x-k8s.io".to_owned();
    assert_eq!(update_conditions(&[other], Some(&pools()), at(1)), [], "a pool of another kind");
}
