//! Wrong, missing or forbidden user input: a condition and an event say what is wrong and how to fix it, nothing else
//! is written, and the rollout continues once it is fixed.

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

/// Runs until the state has settled, and checks that it is reported and that nothing was changed.
#[track_caller]
fn check_stalled(run: &mut SimRun, expected_reason: &str, expected: &str) {
    let written = |run: &SimRun| {
        let world = run.world();
        (world.rewrites.clone(), world.adapters.user_text.clone())
    };
    let before = written(run);
    run.run_for(SignedDuration::from_secs(12));
    let (log, after) = (run.log_text(), written(run));
    let status = run.world().status();
    let stalled = condition(run, condition_type::STALLED);
    assert_eq!((stalled.status, stalled.reason.as_str()), (ConditionStatus::True, expected_reason), "{log}");
    assert!(stalled.message.contains(expected), "{}", stalled.message);
    assert!(status.message.contains(expected), "{}", status.message);
    let events = run.world().events.iter().filter(|event| event.warning && event.reason == expected_reason).count();
    assert_eq!(events, 1, "reported once\n{log}");
    assert_eq!(before, after, "{log}");
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
fn missing_configmap_stalls() {
    let mut run = start_run(|world| world.misconfiguration.adapters = true);
    check_stalled(
        &mut run,
        reason::INVALID,
        "the adapters file adapters does not exist: create it, or fix spec.adaptersRef",
    );
    fix_and_finish(&mut run);
}

#[test]
fn missing_key_stalls() {
    let problem = "ConfigMap prod/adapters has no key configmap.yaml";
    let mut run = start_run(|world| world.misconfiguration.adapters_problem = Some(problem.to_owned()));
    check_stalled(&mut run, reason::INVALID, problem);
    fix_and_finish(&mut run);
}

#[test]
fn configmap_deleted_mid_rollout_changes_no_weights() {
    let mut run = at_half();
    run.world().misconfiguration.adapters = true;
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    run.run_until_weights(&[(V1, 100)]);
}

#[test]
fn missing_pool_stalls() {
    let problem = "there is no InferencePool prod/pool";
    let mut run = start_run(|world| {
        world.misconfiguration.pool = Some(problem.to_owned());
        world.adapters.directives_text = None;
    });
    check_stalled(&mut run, reason::INVALID, problem);
    assert_eq!(run.world().adapters.directives_text, None, "a typo causes no writes");
    fix_and_finish(&mut run);
}

#[test]
fn second_problem_is_reported_too() {
    let all = ["there is no InferencePool prod/pool", "the kind of pools is not installed"];
    let mut run = start_run(|world| world.misconfiguration.pool = Some(all[0].to_owned()));
    check_stalled(&mut run, reason::INVALID, all[0]);
    run.world().misconfiguration.pool = Some(all[1].to_owned());
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(12));
    let warnings: Vec<_> =
        run.world().events.iter().filter(|event| event.warning).map(|event| event.message.clone()).collect();
    assert!(warnings.len() == 2 && warnings[1].contains(all[1]), "{warnings:?}");
    assert!(condition(&run, condition_type::STALLED).message.contains(all[1]));
    fix_and_finish(&mut run);
}

#[test]
fn missing_rewrite_kind_stalls() {
    let problem = "no kind of rewrite is installed";
    let mut run = start_run(|world| world.misconfiguration.rewrites = Some(problem.to_owned()));
    check_stalled(&mut run, reason::INVALID, problem);
    fix_and_finish(&mut run);
}

#[test]
fn rewrite_kind_removed_in_a_pause_stalls() {
    let mut run = at_half();
    let problem = "no kind of rewrite is installed";
    run.world().misconfiguration.rewrites = Some(problem.to_owned());
    run.world().changed = true;
    check_stalled(&mut run, reason::INVALID, problem);
    run.world().misconfiguration = Misconfiguration::default();
    run.world().changed = true;
    run.run_for(SignedDuration::from_secs(6));
    assert_eq!(run.world().phase(), Phase::Paused);
    assert_eq!(condition(&run, condition_type::STALLED).status, ConditionStatus::False, "{}", run.log_text());
}

#[test]
fn missing_permission_stalls() {
    let problem = "it is forbidden to create inferencemodelrewrites.llm-d.ai";
    let mut run = start_run(|world| world.misconfiguration.write_permission = Some(problem.to_owned()));
    check_stalled(&mut run, reason::WRITE_REFUSED, problem);
    fix_and_finish(&mut run);
}

#[test]
fn abort_is_kept_while_a_permission_is_missing() {
    let mut run = at_half();
    let problem = "it is forbidden to update inferencemodelrewrites.llm-d.ai";
    run.world().misconfiguration.write_permission = Some(problem.to_owned());
    run.world().set_intent(rollora_api::rollout::IntentKind::Abort);
    check_stalled(&mut run, reason::WRITE_REFUSED, problem);
    run.world().misconfiguration = Misconfiguration::default();
    run.run_until_weights(&[(V1, 100)]);
    run.run_until_phase(Phase::RolledBack);
}

#[test]
fn unlisted_adapter_is_reported() {
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
fn pattern_without_match_is_reported() {
    let mut run = SimRun::new(World::new(ROLLOUT, 2, &["other-v1"]));
    run.run_for(SignedDuration::from_secs(12));
    let said = condition(&run, condition_type::PROGRESSING);
    assert_eq!(said.reason, reason::NO_MATCH, "{}", run.log_text());
    assert_eq!(said.message, "no id under ensureExist matches small-v*: list one, or fix spec.adapter");
    assert_eq!(run.world().events.iter().filter(|event| event.reason == reason::NO_MATCH).count(), 1);
    assert!(run.world().rewrites.is_empty());
}

#[test]
fn pool_without_ready_pods_is_reported() {
    let mut run = start_run(|world| world.servers.clear());
    run.run_for(SignedDuration::from_secs(12));
    let progressing = condition(&run, condition_type::PROGRESSING);
    assert_eq!(progressing.reason, reason::NO_READY_PODS, "{}", run.log_text());
    let events = run.world().events.iter().filter(|event| event.reason == reason::NO_READY_PODS).count();
    assert_eq!(events, 1, "{}", run.log_text());
    assert!(run.world().rewrites.is_empty());
}

/// A rewrite of the pool with one rule for `model`, or for all models.
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
fn rewrite_with_two_unknown_targets_stalls() {
    let mut run = start_with_rewrite(foreign_rewrite("small", "pool", Some("small"), &["a", "b"]));
    check_stalled(&mut run, reason::STABLE_UNKNOWN, "write the annotation rollora.dev/stable");
}

#[test]
fn rewrite_of_another_pool_is_never_written() {
    let mut run = start_with_rewrite(foreign_rewrite("small", "other-pool", Some("small"), &["a"]));
    check_stalled(&mut run, reason::CONFLICT, "rewrite small is for the pool other-pool");
}

#[test]
fn generic_rule_stalls_as_double_rewrite() {
    let mut run = start_with_rewrite(foreign_rewrite("everything", "pool", None, &["a"]));
    check_stalled(&mut run, reason::DOUBLE_REWRITE, "rewrite everything has a rule for every name");
    run.world().rewrites.clear();
    run.world().changed = true;
    run.run_until_phase(Phase::Succeeded);
}

#[test]
fn rule_for_an_adapter_id_starts_no_rollout() {
    let mut run = start_run(|_| ());
    run.run_until_phase(Phase::Succeeded);
    let number = run.world().next_version();
    run.world().rewrites.push((foreign_rewrite("versions", "pool", Some(V2), &["a"]), number));
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(12));
    let stalled = condition(&run, condition_type::STALLED);
    assert_eq!(
        (stalled.status, stalled.reason.as_str()),
        (ConditionStatus::True, reason::DOUBLE_REWRITE),
        "{}",
        run.log_text()
    );
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
}

#[test]
fn endpoint_picker_as_router_has_no_double_rewrite() {
    let rollout = ROLLOUT.replace("spec:\n", "spec:\n  router: EndpointPicker\n");
    let mut world = World::new(&rollout, 2, &[V1]);
    let number = world.next_version();
    world.rewrites.push((foreign_rewrite("everything", "pool", None, &["a"]), number));
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Succeeded);
}
