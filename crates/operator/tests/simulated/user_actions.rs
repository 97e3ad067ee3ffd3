//! Actions of people in the middle of a rollout: other versions, unlisting, pauses, edits of what the operator writes.

use crate::{
    driver::SimRun,
    guide::{ROLLOUT, V1, V2, at_half, installed},
    world::{World, id},
};
use jiff::SignedDuration;
use rollora_api::{
    condition::ConditionStatus,
    names::STABLE_ANNOTATION,
    rewrite::InferenceModelRewrite,
    rollout::{
        IntentKind,
        spec::{AdapterChoice, CleanupPolicy},
        status::{Phase, RetirementState},
    },
};

const V3: &str = "small-v3";

fn retirement_state(run: &SimRun, name: &str) -> Option<RetirementState> {
    run.world().status().retired.iter().find(|entry| entry.id == id(name)).map(|entry| entry.state)
}

fn listed_ids(run: &SimRun) -> (Vec<String>, Vec<String>) {
    let file = run.world().adapters_file();
    let ids = |entries: &[rollora_api::adapters::AdapterEntry]| {
        entries.iter().map(|entry| entry.id.as_str().to_owned()).collect::<Vec<_>>()
    };
    (ids(&file.ensure_exist), ids(&file.ensure_not_exist))
}

#[test]
fn newer_version_at_half_replaces_the_candidate() {
    let mut run = at_half();
    let writes = run.world().weight_history.len();
    run.world().list_adapters(&[V1, V2, V3], &[]);
    run.run_until_weights(&[(V1, 100)]);
    assert_eq!(run.world().weight_history.len(), writes + 1);
    let status = run.world().status();
    assert_eq!((status.revision.stable, status.revision.desired), (Some(id(V1)), Some(id(V3))));
    assert_eq!(status.step.map(|step| step.index), Some(0));
    run.run_until_weights(&[(V1, 50), (V3, 50)]);
    run.run_until("v2 is gone", |world| world.loaded_count(&id(V2)) == 0);
    run.run_until_phase(Phase::Paused);
    run.world().set_intent(IntentKind::Promote);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
    run.run_until_phase(Phase::Succeeded);
    assert_eq!(listed_ids(&run).0, [V3]);
}

#[test]
fn unlisting_the_candidate_at_half_restores_stable() {
    for (exist, not_exist) in [(vec![V1], vec![V2]), (vec![V1], vec![])] {
        let mut run = at_half();
        run.world().list_adapters(&exist, &not_exist);
        run.tick();
        assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
        run.run_until_phase(Phase::Succeeded);
        assert_eq!(run.world().status().revision.stable, Some(id(V1)));
        if not_exist.is_empty() {
            run.run_until("v2 is kept", |world| {
                world.status().retired.iter().any(|entry| entry.state == RetirementState::Kept)
            });
            assert_eq!(run.world().loaded_count(&id(V2)), 3, "an id that the file does not list is never unloaded");
        } else {
            run.run_until("v2 is gone", |world| world.loaded_count(&id(V2)) == 0);
        }
    }
}

#[test]
fn relisted_candidate_starts_again_with_the_first_step() {
    for (exist, not_exist) in [(vec![V1], vec![V2]), (vec![V1], vec![])] {
        let mut run = at_half();
        run.world().list_adapters(&exist, &not_exist);
        run.run_until_weights(&[(V1, 100)]);
        run.world().list_adapters(&[V1, V2], &[]);
        run.run_until_weights(&[(V1, 90), (V2, 10)]);
    }
    let mut run = at_half();
    run.world().list_adapters(&[V1, V2, V3], &[]);
    run.run_until_weights(&[(V1, 90), (V3, 10)]);
    run.world().list_adapters(&[V1, V2], &[V3]);
    run.run_until_weights(&[(V1, 90), (V2, 10)]);
}

#[test]
fn id_without_a_version_is_ignored_and_reported_once() {
    let mut run = installed();
    run.world().list_adapters(&[V1, "small-v2-rc1"], &[]);
    run.run_for(SignedDuration::from_secs(10));
    let world = run.world();
    let status = world.status();
    assert_eq!((status.phase, status.revision.desired), (Phase::Succeeded, Some(id(V1))));
    assert!(status.message.ends_with("for the * of small-v*: small-v2-rc1"), "{}", status.message);
    let reported = world.events.iter().filter(|event| event.message.contains("small-v2-rc1")).count();
    assert_eq!(reported, 1, "{:#?}", world.events);
}

#[test]
fn unlisted_stable_stays_until_it_has_no_weight() {
    let mut run = at_half();
    run.world().list_adapters(&[V2], &[V1]);
    run.run_for(SignedDuration::from_secs(20));
    run.check_violations();
    assert_eq!(run.world().loaded_count(&id(V1)), 3, "{}", run.log_text());
    run.world().set_intent(IntentKind::Promote);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
}

#[test]
fn unlisting_a_new_stable_restores_the_retired_one() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until_phase(Phase::Succeeded);
    assert_eq!(retirement_state(&run, V1), Some(RetirementState::Waiting));
    run.world().list_adapters(&[V1], &[V2]);
    run.run_until_weights(&[(V1, 100)]);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v2 is gone", |world| world.loaded_count(&id(V2)) == 0);
    assert_eq!(run.world().loaded_count(&id(V1)), 3);
    assert_eq!(run.world().status().revision.stable, Some(id(V1)));
}

#[test]
fn unlisting_everything_changes_no_weights() {
    let mut run = installed();
    run.world().list_adapters(&[], &[V1]);
    run.run_for(SignedDuration::from_secs(30));
    run.check_violations();
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
    assert_eq!(run.world().loaded_count(&id(V1)), 3);
    assert!(run.world().status().message.contains("no id under ensureExist matches small-v*"), "{}", run.log_text());
}

#[test]
fn unlisted_id_is_relisted_when_it_is_desired_again() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
    run.world()
        .edit_spec(|rollout| rollout.spec.adapter = AdapterChoice { id: Some(id(V1)), ..AdapterChoice::default() });
    run.run_until("v1 is listed", |world| world.adapters_file().ensure_exist.iter().any(|entry| entry.id == id(V1)));
    run.run_until_weights(&[(V2, 50), (V1, 50)]);
    run.run_until_phase(Phase::Paused);
    run.world().set_intent(IntentKind::Promote);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v2 is gone", |world| world.loaded_count(&id(V2)) == 0);
}

#[test]
fn retired_entry_relisted_by_a_person_is_kept() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until("v1 is back", |world| world.loaded_count(&id(V1)) == 3);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(retirement_state(&run, V1), Some(RetirementState::Relisted), "{}", run.log_text());
    assert_eq!(run.world().loaded_count(&id(V1)), 3);
    run.world().list_adapters(&[V2], &[V1]);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
    run.run_until("Gone", |world| world.status().retired[0].state == RetirementState::Gone);
}

#[test]
fn cleanup_follows_its_policy() {
    for (policy, gitops, expected) in [
        (CleanupPolicy::Keep, None, RetirementState::Kept),
        (CleanupPolicy::Suggest, None, RetirementState::Suggested),
        (CleanupPolicy::Unload, Some("Argo CD"), RetirementState::Suggested),
    ] {
        let mut run = at_half();
        run.world().set_gitops_owner(gitops);
        run.world().edit_spec(|rollout| rollout.spec.cleanup.policy = policy);
        run.world().set_intent(IntentKind::PromoteFull);
        run.run_until("the policy", |world| world.status().retired.iter().any(|entry| entry.state == expected));
        run.run_for(SignedDuration::from_secs(20));
        assert_eq!(retirement_state(&run, V1), Some(expected), "{}", run.log_text());
        assert_eq!(run.world().loaded_count(&id(V1)), 3);
        run.world().list_adapters(&[V2], &[V1]);
        run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
        run.run_until("Gone", |world| world.status().retired[0].state == RetirementState::Gone);
    }
}

#[test]
fn retired_id_stays_while_clients_call_it_directly() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until_phase(Phase::Succeeded);
    for _ in 0..100 {
        run.world().use_on_all_servers(&id(V1));
        run.tick();
    }
    assert_eq!(retirement_state(&run, V1), Some(RetirementState::StillInUse), "{}", run.log_text());
    assert_eq!(run.world().loaded_count(&id(V1)), 3);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
}

#[test]
fn paused_spec_stops_steps_and_cleanup_but_not_abort() {
    let mut run = at_half();
    run.world().edit_spec(|rollout| rollout.spec.paused = true);
    run.world().set_intent(IntentKind::Promote);
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    let action = run.world().status().last_action.unwrap();
    assert!(action.outcome.starts_with("refused: spec.paused is true"), "{}", action.outcome);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_weights(&[(V1, 100)]);
    run.run_until_phase(Phase::RolledBack);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().loaded_count(&id(V2)), 3, "cleanup is paused");
    run.world().edit_spec(|rollout| rollout.spec.paused = false);
    run.run_until("v2 is gone", |world| world.loaded_count(&id(V2)) == 0);
}

#[test]
fn promotion_of_a_past_step_is_refused_and_consumed_once() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::Promote);
    let stale = run.world().rollout.metadata.annotations.clone();
    run.run_until_phase(Phase::Succeeded);
    let first = run.world().status().last_action.unwrap();
    assert!(first.outcome.starts_with("done"), "{}", first.outcome);
    run.world().list_adapters(&[V1, V2, V3], &[]);
    run.run_until_weights(&[(V2, 90), (V3, 10)]);
    run.world().edit_spec(|rollout| rollout.metadata.annotations = stale);
    run.run_for(SignedDuration::from_secs(2));
    assert_eq!(run.world().status().last_action.unwrap(), first, "consumed before");
    run.world().set_intent(IntentKind::Promote);
    run.run_until("consumed", |world| world.status().last_action.unwrap().id != first.id);
    run.check_violations();
}

#[test]
fn foreign_edit_of_the_rewrite_is_reverted_and_reported() {
    let mut run = at_half();
    run.world().edit_rewrite(|rewrite| {
        rewrite.spec.rules[0].targets.pop();
        rewrite.metadata.labels.insert("mine".to_owned(), "kept".to_owned());
    });
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    let world = run.world();
    assert!(world.events.iter().any(|event| event.reason == "RewriteOverwritten"), "{}", run.log_text());
    assert_eq!(world.rewrites[0].0.metadata.labels["mine"], "kept");
    assert_eq!(world.status().phase, Phase::Paused);
}

#[test]
fn rewrite_moved_to_another_pool_is_reverted_and_reported() {
    let mut run = installed();
    run.world().edit_rewrite(|rewrite| rewrite.spec.pool_ref.name = "another".to_owned());
    run.run_until("the pool is restored", |world| world.rewrites[0].0.spec.pool_ref.name == "pool");
    let world = run.world();
    assert!(world.events.iter().any(|event| event.reason == "RewriteOverwritten"), "{}", run.log_text());
}

#[test]
fn shadowing_by_an_older_rewrite_is_reported() {
    let mut run = installed();
    let now = run.world().now;
    run.world().rewrites[0].0.metadata.creation_timestamp = Some(now);
    let mut older = run.world().rewrites[0].0.clone();
    older.metadata.name = "older".to_owned();
    older.metadata.uid = Some("older-uid".to_owned());
    older.metadata.creation_timestamp = Some("2020-01-01T00:00:00Z".parse().unwrap());
    older.metadata.annotations.clear();
    let version = run.world().rewrites[0].1;
    run.world().rewrites.push((older, version));
    run.world().changed = true;
    run.run_until("it is said", |world| {
        world.status().message.contains("the rule of rewrite older is active for the model")
    });
    let holds = |run: &SimRun, kind: &str| {
        let status = run.world().status();
        let condition = status.conditions.into_iter().find(|condition| condition.type_ == kind).unwrap();
        (condition.status, condition.reason)
    };
    for (kind, status) in [("Ready", ConditionStatus::False), ("Stalled", ConditionStatus::True)] {
        assert_eq!(holds(&run, kind), (status, "ShadowedBy".to_owned()), "{kind}");
    }
    assert!(run.world().events.iter().any(|event| event.reason == "ShadowedBy"), "{}", run.log_text());
    run.world().rewrites.pop();
    run.world().changed = true;
    run.run_until("it is over", |world| world.status().message == "small-v1 serves all requests");
    assert_eq!(holds(&run, "Ready").0, ConditionStatus::True);
}

#[test]
fn repeatedly_edited_rewrite_is_reverted_slowly() {
    let mut run = at_half();
    for _ in 0..3 {
        run.world().edit_rewrite(|rewrite| rewrite.spec.rules[0].targets[0].weight = Some(90));
        run.world().edit_rewrite(|rewrite| rewrite.spec.rules[0].targets[1].weight = Some(10));
        run.run_for(SignedDuration::from_secs(1));
    }
    assert_eq!(run.world().weights(), [(V1.to_owned(), 90), (V2.to_owned(), 10)], "{}", run.log_text());
    assert!(run.world().status().message.contains("another writer keeps editing the rewrite"), "{}", run.log_text());
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.world().edit_rewrite(|rewrite| rewrite.spec.rules[0].targets[1].weight = Some(10));
    run.tick();
    run.world().set_intent(IntentKind::Abort);
    run.tick();
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "an abort does not wait\n{}", run.log_text());
}

/// Regression: the rewrite was written again as fast as the API server allowed.
#[test]
fn edits_before_the_next_reconcile_are_reverted_slowly_too() {
    let rival = |rewrite: &mut InferenceModelRewrite| rewrite.spec.rules[0].targets[1].weight = Some(10);
    let mut run = at_half();
    run.world().rival = Some(rival);
    let before = run.world().weight_history.len();
    run.world().edit_rewrite(rival);
    run.run_until("it is said", |world| world.status().message.contains("another writer keeps editing the rewrite"));
    run.run_for(SignedDuration::from_secs(50));
    let writes = run.world().weight_history.len() - before;
    assert!(writes < 8, "{writes}\n{}", run.log_text());
    run.world().rival = None;
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
}

#[test]
fn terminating_rewrite_is_recreated_after_its_deletion() {
    let mut run = at_half();
    let now = run.world().now;
    run.world().edit_rewrite(|rewrite| {
        rewrite.metadata.deletion_timestamp = Some(now);
        rewrite.metadata.finalizers = vec!["somebody.else/guard".to_owned()];
    });
    let before = run.world().rewrites.clone();
    run.run_for(SignedDuration::from_secs(5));
    assert_eq!(run.world().rewrites, before, "{}", run.log_text());
    run.world().rewrites.clear();
    run.world().rewrites_changed();
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
}

#[test]
fn deleted_rewrite_is_recreated() {
    let mut run = at_half();
    run.world().rewrites.clear();
    run.world().rewrites_changed();
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_for(SignedDuration::from_secs(5));
    let world = run.world();
    assert_eq!(world.status().rewrite.unwrap().uid, world.rewrites[0].0.metadata.uid.clone().unwrap());
    assert_eq!(world.status().phase, Phase::Paused);
}

#[test]
fn lost_status_is_rebuilt_from_the_rewrite() {
    let mut run = at_half();
    run.world().delete_status();
    run.run_until_phase(Phase::Paused);
    let status = run.world().status();
    assert_eq!((status.revision.stable, status.revision.desired), (Some(id(V1)), Some(id(V2))), "{}", run.log_text());
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
    run.world().set_intent(IntentKind::Promote);
    run.run_until_phase(Phase::Succeeded);
    run.run_until("v1 is gone", |world| world.loaded_count(&id(V1)) == 0);
}

#[test]
fn lost_status_without_stable_annotation_changes_no_weights() {
    let mut run = at_half();
    run.world().delete_status();
    run.world().edit_rewrite(|rewrite| drop(rewrite.metadata.annotations.remove(STABLE_ANNOTATION)));
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    let status = run.world().status();
    assert!(status.message.contains("write the annotation rollora.dev/stable"), "{}", status.message);
    run.world().edit_rewrite(|rewrite| {
        rewrite.metadata.annotations.insert(STABLE_ANNOTATION.to_owned(), V1.to_owned());
    });
    run.run_until_phase(Phase::Paused);
}

#[test]
fn directly_served_model_name_is_stable() {
    let mut run = installed();
    run.world().rewrites.clear();
    run.world().delete_status();
    run.world().rewrites_changed();
    run.world().adapters.directives_text = None;
    run.world().list_adapters(&["small", V2], &[]);
    run.world().load_everywhere(&id("small"));
    run.run_until_weights(&[("small", 90), (V2, 10)]);
    run.run_until_weights(&[("small", 50), (V2, 50)]);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_weights(&[("small", 100)]);
    run.run_until_phase(Phase::RolledBack);
}

#[test]
fn unparsable_adapters_file_changes_nothing() {
    let mut run = at_half();
    run.world().write_adapters(Some("vLLMLoRAConfig: [".to_owned()), None);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
    assert!(run.world().status().message.contains("line 1"), "{}", run.world().status().message);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_weights(&[(V1, 100)]);
    run.check_violations();
}

#[test]
fn steps_are_pinned_and_an_edit_is_reported() {
    let mut run = at_half();
    run.world().edit_spec(|rollout| rollout.spec.strategy.steps.truncate(1));
    run.run_for(SignedDuration::from_secs(2));
    assert_eq!(run.world().status().steps.len(), 5);
    let said =
        |event: &rollora_operator::ports::RolloutEvent| event.message.contains("the next one uses the edited steps");
    assert_eq!(run.world().events.iter().filter(|event| said(event)).count(), 1, "{}", run.log_text());
}

#[test]
fn late_abort_leaves_no_message_about_skipped_reads() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::Promote);
    run.run_until_phase(Phase::Succeeded);
    run.world().set_intent(IntentKind::Abort);
    run.tick();
    let status = run.world().status();
    assert!(status.last_action.is_some_and(|action| action.outcome.contains("already succeeded")));
    assert!(!status.message.contains("not queried"), "{}", status.message);
    let conditions = status.conditions.iter().map(|condition| condition.message.as_str());
    assert!(conditions.into_iter().all(|message| !message.contains("not queried")), "{:?}", status.conditions);
}

#[test]
fn relisted_id_without_sidecars_waits_three_minutes() {
    let rollout = ROLLOUT.replace("adaptersRef:", "residency: Registered\n  adaptersRef:");
    let mut run = SimRun::new(World::new(&rollout, 2, &[V1]));
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&[V1], &[V2]);
    run.run_for(SignedDuration::from_secs(5));
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(170));
    let weights = run.world().weights();
    assert_eq!(weights, [(V1.to_owned(), 100)], "{}", run.log_text());
    let message = run.world().status().message;
    assert!(
        message.contains("was under ensureNotExist until") && message.contains("as resident only from"),
        "{message}"
    );
    run.run_for(SignedDuration::from_secs(15));
    let weights = run.world().weights();
    assert_eq!(weights.len(), 2, "{}", run.log_text());
    run.check_violations();
    // An id that was never unlisted has no waiting time.
    run.world().list_adapters(&[V1, V2, "small-v3"], &[]);
    run.run_until_weights(&[(V1, 90), ("small-v3", 10)]);
}
