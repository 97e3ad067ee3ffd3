//! What a person has written wrong, forgotten or not allowed: a condition and an event say what and what to do, nothing
//! else is written, and it goes on when it is mended.

use crate::{
    driver::SimRun,
    guide::{ROLLOUT, V1, V2, at_half},
    world::{Misconfiguration, World},
};
use jiff::SignedDuration;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason},
    rewrite::{InferenceModelRewrite, RewriteRule, RewriteTarget},
    rollout::status::Phase,
};

fn condition(run: &SimRun, kind: &str) -> Condition {
    let conditions = run.world().status().conditions;
    conditions.into_iter().find(|condition| condition.type_ == kind).unwrap_or_else(|| panic!("{}", run.log_text()))
}

/// Runs until it has settled, and checks what was said and that nothing was done.
#[track_caller]
fn check_stalled(run: &mut SimRun, why: &str, words: &str) {
    let written = |run: &SimRun| {
        let world = run.world();
        (world.rewrites.clone(), world.adapters.user_text.clone())
    };
    let before = written(run);
    run.run_for(SignedDuration::from_secs(12));
    let (story, after) = (run.log_text(), written(run));
    let status = run.world().status();
    let said = condition(run, condition_type::STALLED);
    assert_eq!((said.status, said.reason.as_str()), (ConditionStatus::True, why), "{story}");
    assert!(said.message.contains(words), "{}", said.message);
    assert!(status.message.contains(words), "{}", status.message);
    let events = run.world().events.iter().filter(|event| event.warning && event.reason == why).count();
    assert_eq!(events, 1, "said once\n{story}");
    assert_eq!(before, after, "{story}");
    run.check_violations();
}

fn start_run(change: impl FnOnce(&mut World)) -> SimRun {
    let mut world = World::new(ROLLOUT, 2, &[V1]);
    change(&mut world);
    SimRun::new(world)
}

fn fix_and_finish(run: &mut SimRun) {
    run.world().misconfiguration = Misconfiguration::default();
    run.world().changed = true;
    run.run_until_phase(Phase::Succeeded);
    assert_eq!(condition(run, condition_type::STALLED).status, ConditionStatus::False, "{}", run.log_text());
}

#[test]
fn a_configmap_that_is_not_there() {
    let mut run = start_run(|world| world.misconfiguration.adapters = true);
    check_stalled(
        &mut run,
        reason::INVALID,
        "the adapters file adapters does not exist: create it, or fix spec.adaptersRef",
    );
    fix_and_finish(&mut run);
}

#[test]
fn a_key_that_is_not_there() {
    let words = "ConfigMap prod/adapters has no key configmap.yaml";
    let mut run = start_run(|world| world.misconfiguration.adapters_problem = Some(words.to_owned()));
    check_stalled(&mut run, reason::INVALID, words);
    fix_and_finish(&mut run);
}

#[test]
fn a_configmap_that_goes_away_in_the_middle_moves_nothing() {
    let mut run = at_half();
    run.world().misconfiguration.adapters = true;
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    run.run_until_weights(&[(V1, 100)]);
}

#[test]
fn a_pool_that_is_not_there() {
    let words = "there is no InferencePool prod/pool";
    let mut run = start_run(|world| {
        world.misconfiguration.pool = Some(words.to_owned());
        world.adapters.directives_text = None;
    });
    check_stalled(&mut run, reason::INVALID, words);
    assert_eq!(run.world().adapters.directives_text, None, "nothing is written because of a slip of the pen");
    fix_and_finish(&mut run);
}

#[test]
fn another_thing_that_is_wrong_is_told_too() {
    let all = ["there is no InferencePool prod/pool", "the kind of pools is not installed"];
    let mut run = start_run(|world| world.misconfiguration.pool = Some(all[0].to_owned()));
    check_stalled(&mut run, reason::INVALID, all[0]);
    run.world().misconfiguration.pool = Some(all[1].to_owned());
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(12));
    let told: Vec<_> = run.world().events.iter().filter(|event| event.warning).map(|it| it.message.clone()).collect();
    assert!(told.len() == 2 && told[1].contains(all[1]), "{told:?}");
    assert!(condition(&run, condition_type::STALLED).message.contains(all[1]));
    fix_and_finish(&mut run);
}

#[test]
fn no_kind_of_rewrite_is_installed() {
    let words = "no kind of rewrite is installed";
    let mut run = start_run(|world| world.misconfiguration.rewrites = Some(words.to_owned()));
    check_stalled(&mut run, reason::INVALID, words);
    fix_and_finish(&mut run);
}

#[test]
fn the_kind_of_rewrite_is_removed_in_a_pause() {
    let mut run = at_half();
    let words = "no kind of rewrite is installed";
    run.world().misconfiguration.rewrites = Some(words.to_owned());
    run.world().changed = true;
    check_stalled(&mut run, reason::INVALID, words);
    run.world().misconfiguration = Misconfiguration::default();
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(6));
    assert_eq!(run.world().phase(), Phase::Paused);
    assert_eq!(condition(&run, condition_type::STALLED).status, ConditionStatus::False, "{}", run.log_text());
}

#[test]
fn a_permission_that_is_missing() {
    let words = "it is forbidden to create inferencemodelrewrites.llm-d.ai";
    let mut run = start_run(|world| world.misconfiguration.write_permission = Some(words.to_owned()));
    check_stalled(&mut run, reason::WRITE_REFUSED, words);
    fix_and_finish(&mut run);
}

#[test]
fn a_permission_that_goes_missing_before_an_abort_is_said_and_the_abort_is_not_forgotten() {
    let mut run = at_half();
    let words = "it is forbidden to update inferencemodelrewrites.llm-d.ai";
    run.world().misconfiguration.write_permission = Some(words.to_owned());
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    check_stalled(&mut run, reason::WRITE_REFUSED, words);
    run.world().misconfiguration = Misconfiguration::default();
    run.run_until_weights(&[(V1, 100)]);
    run.run_until_phase(Phase::RolledBack);
}

#[test]
fn an_adapter_that_is_not_listed() {
    let rollout = ROLLOUT.replace("follow: { pattern: \"small-v*\" }", "id: small-v7");
    let mut run = SimRun::new(World::new(&rollout, 2, &[V1]));
    run.run_for(SignedDuration::from_secs(12));
    let ready = condition(&run, condition_type::READY);
    assert_eq!(
        (ready.status, ready.reason.as_str()),
        (ConditionStatus::False, reason::NOT_LISTED),
        "{}",
        run.log_text()
    );
    assert!(ready.message.contains("small-v7 is not listed: add it under ensureExist"), "{}", ready.message);
    let events = run.world().events.iter().filter(|event| event.reason == reason::NOT_LISTED).count();
    assert_eq!(events, 1, "{}", run.log_text());
    assert!(run.world().rewrites.is_empty());
    run.world().list_adapters(&[V1, "small-v7"], &[]);
    run.run_until_phase(Phase::Succeeded);
}

#[test]
fn nothing_that_matches_is_listed() {
    let mut run = SimRun::new(World::new(ROLLOUT, 2, &["other-v1"]));
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::PROGRESSING);
    assert_eq!(said.reason, reason::NO_MATCH, "{}", run.log_text());
    assert_eq!(said.message, "no id under ensureExist matches small-v*: list one, or fix spec.adapter");
    assert_eq!(run.world().events.iter().filter(|event| event.reason == reason::NO_MATCH).count(), 1);
    assert!(run.world().rewrites.is_empty());
}

#[test]
fn a_pool_without_ready_pods() {
    let mut run = start_run(|world| world.servers.clear());
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::PROGRESSING);
    assert_eq!(said.reason, reason::NO_READY_PODS, "{}", run.log_text());
    let events = run.world().events.iter().filter(|event| event.reason == reason::NO_READY_PODS).count();
    assert_eq!(events, 1, "{}", run.log_text());
    assert!(run.world().rewrites.is_empty());
}

/// A rewrite of the pool with one rule for `model`, or for every name.
fn foreign_rewrite(name: &str, pool: &str, model: Option<&str>, targets: &[&str]) -> InferenceModelRewrite {
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

fn start_with_rewrite(rewrite: InferenceModelRewrite) -> SimRun {
    start_run(|world| {
        let number = world.next_version();
        world.rewrites.push((rewrite, number));
    })
}

#[test]
fn a_rewrite_with_two_unknown_targets() {
    let mut run = start_with_rewrite(foreign_rewrite("small", "pool", Some("small"), &["a", "b"]));
    check_stalled(&mut run, reason::STABLE_UNKNOWN, "write the annotation rollora.dev/stable");
}

#[test]
fn a_rewrite_of_another_pool_is_never_written_to() {
    let mut run = start_with_rewrite(foreign_rewrite("small", "other-pool", Some("small"), &["a"]));
    check_stalled(&mut run, reason::CONFLICT, "rewrite small is for the pool other-pool");
}

#[test]
fn a_generic_rule_that_a_picker_would_apply_again() {
    let mut run = start_with_rewrite(foreign_rewrite("everything", "pool", None, &["a"]));
    check_stalled(&mut run, reason::DOUBLE_REWRITE, "rewrite everything has a rule for every name");
    run.world().rewrites.clear();
    run.world().changed = true;
    run.run_until_phase(Phase::Succeeded);
}

#[test]
fn a_rule_for_an_adapter_s_own_name_starts_nothing_new() {
    let mut run = start_run(|_| ());
    run.run_until_phase(Phase::Succeeded);
    let number = run.world().next_version();
    run.world().rewrites.push((foreign_rewrite("versions", "pool", Some(V2), &["a"]), number));
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::STALLED);
    assert_eq!(
        (said.status, said.reason.as_str()),
        (ConditionStatus::True, reason::DOUBLE_REWRITE),
        "{}",
        run.log_text()
    );
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
}

#[test]
fn an_endpoint_picker_that_executes_the_rewrite_applies_rules_once() {
    let rollout = ROLLOUT.replace("spec:\n", "spec:\n  router: EndpointPicker\n");
    let mut world = World::new(&rollout, 2, &[V1]);
    let number = world.next_version();
    world.rewrites.push((foreign_rewrite("everything", "pool", None, &["a"]), number));
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Succeeded);
}
