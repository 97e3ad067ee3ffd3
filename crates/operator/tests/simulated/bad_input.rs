//! What a person has written wrong, forgotten or not allowed: a condition and an event say what and what to do, nothing
//! else is written, and it goes on when it is mended.

use crate::{
    driver::Run,
    guide::{ROLLOUT, V1, V2, at_half},
    world::{Missing, World},
};
use jiff::SignedDuration;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason},
    rewrite::{InferenceModelRewrite, RewriteRule, RewriteTarget},
    rollout::status::Phase,
};

fn condition(run: &Run, kind: &str) -> Condition {
    let conditions = run.world().status().conditions;
    conditions.into_iter().find(|condition| condition.type_ == kind).unwrap_or_else(|| panic!("{}", run.story()))
}

/// Runs until it has settled, and checks what was said and that nothing was done.
#[track_caller]
fn says(run: &mut Run, why: &str, words: &str) {
    let written = |run: &Run| {
        let world = run.world();
        (world.rewrites.clone(), world.adapters.user_text.clone())
    };
    let before = written(run);
    run.run_for(SignedDuration::from_secs(12));
    let (story, after) = (run.story(), written(run));
    let status = run.world().status();
    let said = condition(run, condition_type::STALLED);
    assert_eq!((said.status, said.reason.as_str()), (ConditionStatus::True, why), "{story}");
    assert!(said.message.contains(words), "{}", said.message);
    assert!(status.message.contains(words), "{}", status.message);
    let events = run.world().events.iter().filter(|event| event.warning && event.reason == why).count();
    assert_eq!(events, 1, "said once\n{story}");
    assert_eq!(before, after, "{story}");
    run.check();
}

fn begun(change: impl FnOnce(&mut World)) -> Run {
    let mut world = World::new(ROLLOUT, 2, &[V1]);
    change(&mut world);
    Run::new(world)
}

fn mended(run: &mut Run) {
    run.world().missing = Missing::default();
    run.world().changed = true;
    run.until_phase(Phase::Succeeded);
    assert_eq!(condition(run, condition_type::STALLED).status, ConditionStatus::False, "{}", run.story());
}

#[test]
fn a_configmap_that_is_not_there() {
    let mut run = begun(|world| world.missing.adapters = true);
    says(&mut run, reason::INVALID, "the adapters file adapters does not exist: make it, or mend spec.adaptersRef");
    mended(&mut run);
}

#[test]
fn a_key_that_is_not_there() {
    let words = "ConfigMap prod/adapters has no key configmap.yaml";
    let mut run = begun(|world| world.missing.adapters_problem = Some(words.to_owned()));
    says(&mut run, reason::INVALID, words);
    mended(&mut run);
}

#[test]
fn a_configmap_that_goes_away_in_the_middle_moves_nothing() {
    let mut run = at_half();
    run.world().missing.adapters = true;
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    run.world().intend(rollora_api::rollout::IntentKind::Abort);
    run.until_weights(&[(V1, 100)]);
}

#[test]
fn a_pool_that_is_not_there() {
    let words = "there is no InferencePool prod/pool";
    let mut run = begun(|world| {
        world.missing.pool = Some(words.to_owned());
        world.adapters.key_text = None;
    });
    says(&mut run, reason::INVALID, words);
    assert_eq!(run.world().adapters.key_text, None, "nothing is written because of a slip of the pen");
    mended(&mut run);
}

#[test]
fn another_thing_that_is_wrong_is_told_too() {
    let all = ["there is no InferencePool prod/pool", "the kind of pools is not installed"];
    let mut run = begun(|world| world.missing.pool = Some(all[0].to_owned()));
    says(&mut run, reason::INVALID, all[0]);
    run.world().missing.pool = Some(all[1].to_owned());
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(12));
    let told: Vec<_> = run.world().events.iter().filter(|event| event.warning).map(|it| it.message.clone()).collect();
    assert!(told.len() == 2 && told[1].contains(all[1]), "{told:?}");
    assert!(condition(&run, condition_type::STALLED).message.contains(all[1]));
    mended(&mut run);
}

#[test]
fn no_kind_of_rewrite_is_installed() {
    let words = "no kind of rewrite is installed";
    let mut run = begun(|world| world.missing.rewrites = Some(words.to_owned()));
    says(&mut run, reason::INVALID, words);
    mended(&mut run);
}

#[test]
fn the_kind_of_rewrite_is_removed_in_a_pause() {
    let mut run = at_half();
    let words = "no kind of rewrite is installed";
    run.world().missing.rewrites = Some(words.to_owned());
    run.world().changed = true;
    says(&mut run, reason::INVALID, words);
    run.world().missing = Missing::default();
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(6));
    assert_eq!(run.world().phase(), Phase::Paused);
    assert_eq!(condition(&run, condition_type::STALLED).status, ConditionStatus::False, "{}", run.story());
}

#[test]
fn a_permission_that_is_missing() {
    let words = "it is forbidden to create inferencemodelrewrites.llm-d.ai";
    let mut run = begun(|world| world.missing.permission = Some(words.to_owned()));
    says(&mut run, reason::WRITE_REFUSED, words);
    mended(&mut run);
}

#[test]
fn a_permission_that_goes_missing_before_an_abort_is_said_and_the_abort_is_not_forgotten() {
    let mut run = at_half();
    let words = "it is forbidden to update inferencemodelrewrites.llm-d.ai";
    run.world().missing.permission = Some(words.to_owned());
    run.world().intend(rollora_api::rollout::IntentKind::Abort);
    says(&mut run, reason::WRITE_REFUSED, words);
    run.world().missing = Missing::default();
    run.until_weights(&[(V1, 100)]);
    run.until_phase(Phase::RolledBack);
}

#[test]
fn an_adapter_that_is_not_listed() {
    let rollout = ROLLOUT.replace("follow: { pattern: \"small-v*\" }", "id: small-v7");
    let mut run = Run::new(World::new(&rollout, 2, &[V1]));
    run.run_for(SignedDuration::from_secs(12));
    let ready = condition(&run, condition_type::READY);
    assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, reason::NOT_LISTED), "{}", run.story());
    assert!(ready.message.contains("small-v7 is not listed: add it under ensureExist"), "{}", ready.message);
    let events = run.world().events.iter().filter(|event| event.reason == reason::NOT_LISTED).count();
    assert_eq!(events, 1, "{}", run.story());
    assert!(run.world().rewrites.is_empty());
    run.world().list(&[V1, "small-v7"], &[]);
    run.until_phase(Phase::Succeeded);
}

#[test]
fn nothing_that_matches_is_listed() {
    let mut run = Run::new(World::new(ROLLOUT, 2, &["other-v1"]));
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::PROGRESSING);
    assert_eq!(said.reason, reason::NO_MATCH, "{}", run.story());
    assert_eq!(said.message, "no id under ensureExist matches small-v*: list one, or mend spec.adapter");
    assert_eq!(run.world().events.iter().filter(|event| event.reason == reason::NO_MATCH).count(), 1);
    assert!(run.world().rewrites.is_empty());
}

#[test]
fn a_pool_without_ready_pods() {
    let mut run = begun(|world| world.servers.clear());
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::PROGRESSING);
    assert_eq!(said.reason, reason::NO_READY_PODS, "{}", run.story());
    let events = run.world().events.iter().filter(|event| event.reason == reason::NO_READY_PODS).count();
    assert_eq!(events, 1, "{}", run.story());
    assert!(run.world().rewrites.is_empty());
}

/// A rewrite of the pool with one rule for `model`, or for every name.
fn foreign(name: &str, pool: &str, model: Option<&str>, targets: &[&str]) -> InferenceModelRewrite {
    let matches = model.map_or(serde_json::json!([]), |model| serde_json::json!([{ "model": { "value": model } }]));
    let targets: Vec<RewriteTarget> = targets
        .iter()
        .map(|id| RewriteTarget { model_rewrite: (*id).to_owned(), weight: Some(50), ..RewriteTarget::default() })
        .collect();
    let rule = RewriteRule { matches: serde_json::from_value(matches).unwrap(), targets, ..RewriteRule::default() };
    let mut rewrite: InferenceModelRewrite = serde_json::from_value(serde_json::json!({
        "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
        "metadata": { "name": name, "uid": format!("uid of {name}") }, "spec": { "poolRef": { "name": pool } },
    }))
    .unwrap();
    rewrite.spec.rules.push(rule);
    rewrite
}

fn beside(rewrite: InferenceModelRewrite) -> Run {
    begun(|world| {
        let number = world.next_version();
        world.rewrites.push((rewrite, number));
    })
}

#[test]
fn a_rewrite_with_two_unknown_targets() {
    let mut run = beside(foreign("small", "pool", Some("small"), &["a", "b"]));
    says(&mut run, reason::STABLE_UNKNOWN, "write the annotation rollora.dev/stable");
}

#[test]
fn a_rewrite_of_another_pool_is_never_written_to() {
    let mut run = beside(foreign("small", "other-pool", Some("small"), &["a"]));
    says(&mut run, reason::CONFLICT, "rewrite small is for the pool other-pool");
}

#[test]
fn a_generic_rule_that_a_picker_would_apply_again() {
    let mut run = beside(foreign("everything", "pool", None, &["a"]));
    says(&mut run, reason::DOUBLE_REWRITE, "rewrite everything has a rule for every name");
    run.world().rewrites.clear();
    run.world().changed = true;
    run.until_phase(Phase::Succeeded);
}

#[test]
fn a_rule_for_an_adapter_s_own_name_starts_nothing_new() {
    let mut run = begun(|_| ());
    run.until_phase(Phase::Succeeded);
    let number = run.world().next_version();
    run.world().rewrites.push((foreign("versions", "pool", Some(V2), &["a"]), number));
    run.world().list(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::STALLED);
    assert_eq!((said.status, said.reason.as_str()), (ConditionStatus::True, reason::DOUBLE_REWRITE), "{}", run.story());
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.story());
}

#[test]
fn an_endpoint_picker_that_executes_the_rewrite_applies_rules_once() {
    let rollout = ROLLOUT.replace("spec:\n", "spec:\n  router: EndpointPicker\n");
    let mut world = World::new(&rollout, 2, &[V1]);
    let number = world.next_version();
    world.rewrites.push((foreign("everything", "pool", None, &["a"]), number));
    let mut run = Run::new(world);
    run.until_phase(Phase::Succeeded);
}
