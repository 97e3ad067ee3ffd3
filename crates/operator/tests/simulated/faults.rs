//! Failures in the middle of a rollout: adapters, servers, routers, and the calls of the ports.

use crate::{
    driver::SimRun,
    guide::{ROLLOUT, V1, V2, at_half, installed},
    server::AdapterBehavior,
    world::{Fault, SimRouter, World, id},
};
use jiff::SignedDuration;
use rollora_api::rollout::{
    IntentKind,
    spec::OnFailure,
    status::{Phase, RetirementState},
};

fn crash_count(run: &SimRun) -> usize {
    run.world().servers.iter().map(|server| server.crash_ids.len()).sum()
}

#[test]
fn adapter_that_crashes_a_server_is_rejected_after_one() {
    let mut run = installed();
    run.world().behaviors.insert(id(V2), AdapterBehavior::CrashesOnLoad);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_phase(Phase::RolledBack);
    run.run_for(SignedDuration::from_secs(30));
    run.check_violations();
    assert_eq!(crash_count(&run), 1, "{}", run.log_text());
    assert_eq!(run.world().weight_history, [[(V1.to_owned(), 100)]], "it never had weight");
    assert_eq!(
        run.world().status().message,
        "small-v2 was rejected: the server server-0 died while loading it or at its \
         first use; list another id, or run: rollora retry small"
    );
}

#[test]
fn superseded_trial_crashes_no_second_server() {
    let mut run = installed();
    run.world().behaviors.insert(id(V2), AdapterBehavior::CrashesOnLoad);
    run.world().list_adapters(&[V1, V2], &[]);
    run.tick();
    run.world().list_adapters(&[V1, V2, "small-v3"], &[]);
    run.run_until("v2 is unlisted", |world| {
        world.adapters_file().ensure_not_exist.iter().any(|entry| entry.id == id(V2))
    });
    run.world().list_adapters(&[V1, V2, "small-v3"], &[]);
    run.run_until_weights(&[(V1, 50), ("small-v3", 50)]);
    run.run_for(SignedDuration::from_secs(20));
    run.check_violations();
    assert!(crash_count(&run) <= 1, "{}", run.log_text());
}

#[test]
fn rejected_adapter_needs_retry_but_another_id_does_not() {
    let mut run = installed();
    run.world().behaviors.insert(id(V2), AdapterBehavior::FailsToLoad);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_phase(Phase::RolledBack);
    let message = run.world().status().message;
    assert!(message.contains("the server server-0 could not load it: rank 32 is above 16"), "{message}");
    run.world().behaviors.clear();
    run.world().set_intent(IntentKind::Retry);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("v2 is unloaded", |world| world.loaded_count(&id(V2)) == 0);
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(run.world().loaded_count(&id(V2)), 0, "it is listed but stays rejected");
    run.world().list_adapters(&[V1, V2, "small-v3"], &[]);
    run.run_until_weights(&[(V1, 50), ("small-v3", 50)]);
}

#[test]
fn rejected_adapter_in_use_stays_but_is_not_reloaded() {
    let mut run = at_half();
    run.world().set_intent(IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    let now = run.world().now;
    run.world().servers[1].crash(now, SignedDuration::from_secs(1));
    for _ in 0..100 {
        run.world().use_on_all_servers(&id(V2));
        run.tick();
    }
    run.check_violations();
    let holds = |run: &SimRun| {
        let world = run.world();
        world.servers.iter().map(|server| (server.ready, server.loaded.contains_key(&id(V2)))).collect::<Vec<_>>()
    };
    assert_eq!(holds(&run), [(true, true), (true, false), (true, true)], "{}", run.log_text());
    run.run_until("it is unloaded everywhere", |world| world.loaded_count(&id(V2)) == 0);
    run.world().set_intent(IntentKind::Retry);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
}

#[test]
fn abort_recovers_servers_that_crash_on_reload() {
    let mut run = at_half();
    run.world().load_everywhere(&id("small-v3"));
    run.world().behaviors.insert(id(V2), AdapterBehavior::CrashesOnReload);
    for _ in 0..200 {
        // Uses of a third adapter evict one of the two.
        run.world().use_on_all_servers(&id("small-v3"));
        run.tick();
    }
    run.check_violations();
    run.world().set_intent(IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("it is unloaded everywhere", |world| world.loaded_count(&id(V2)) == 0);
    run.run_for(SignedDuration::from_secs(10));
    assert!(run.world().servers.iter().all(|server| server.ready), "{}", run.log_text());
}

#[test]
fn aborted_first_install_is_unloaded() {
    let mut run = SimRun::new(World::new(ROLLOUT, 3, &[V1]));
    run.world().servers[2].load_time = SignedDuration::from_secs(40);
    run.run_until("it is admitted", |world| world.loaded_count(&id(V1)) == 2);
    run.world().set_intent(IntentKind::Abort);
    run.run_until("it is unloaded everywhere", |world| world.loaded_count(&id(V1)) == 0);
    run.run_for(SignedDuration::from_secs(5));
    let status = run.world().status();
    assert!(status.admission.admitted.is_empty(), "{status:#?}");
    let clean = status.conditions.iter().find(|condition| condition.type_ == "CleanedUp").unwrap();
    assert_eq!(clean.reason, "Clean", "{clean:?}");
}

#[test]
fn bad_first_install_is_replaced_by_another_id() {
    let mut world = World::new(ROLLOUT, 3, &[V1]);
    world.behaviors.insert(id(V1), AdapterBehavior::CrashesOnLoad);
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Held);
    assert!(run.world().status().message.contains("was rejected"), "{}", run.log_text());
    assert_eq!(crash_count(&run), 1);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_weights(&[(V2, 100)]);
    run.run_until_phase(Phase::Succeeded);
}

#[test]
fn server_restart_at_any_step_changes_no_weights() {
    for server in 0..3 {
        let mut run = installed();
        run.world().list_adapters(&[V1, V2], &[]);
        for weights in [[(V1, 90), (V2, 10)], [(V1, 50), (V2, 50)]] {
            run.run_until_weights(&weights);
            let now = run.world().now;
            run.world().servers[server].crash(now, SignedDuration::from_secs(2));
            run.run_for(SignedDuration::from_secs(1));
            run.check_violations();
        }
        run.run_until_phase(Phase::Paused);
        run.world().set_intent(IntentKind::Promote);
        run.run_until_phase(Phase::Succeeded);
        let now = run.world().now;
        run.world().servers[server].crash(now, SignedDuration::from_secs(2));
        run.run_until("v1 is gone", |world| {
            world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone)
        });
        assert_eq!(run.world().weight_history.len(), 4, "{}", run.log_text());
    }
}

#[test]
fn weight_is_withdrawn_while_a_ready_server_lacks_the_adapter() {
    let mut run = at_half();
    run.world().allow_loss(&id(V2));
    run.world().servers[1].load_time = SignedDuration::from_secs(30);
    run.world().servers[1].loaded.remove(&id(V2));
    run.run_for(SignedDuration::from_secs(8));
    assert_eq!(run.world().weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)], "a short loss changes no weights");
    run.run_until_phase(Phase::Held);
    run.run_until_weights(&[(V1, 100)]);
    assert!(run.world().status().message.contains("server-1: is loading it"), "{}", run.world().status().message);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
}

#[test]
fn briefly_unready_server_does_not_pass_the_residency_gate() {
    for silent in [false, true] {
        let mut run = installed();
        run.world().servers[2].load_time = SignedDuration::from_secs(20);
        run.world().list_adapters(&[V1, V2], &[]);
        run.run_until("two of three have it", |world| world.loaded_count(&id(V2)) == 2);
        let end = run.world().now + SignedDuration::from_secs(2);
        run.world().servers[2].fail_probe(end, silent);
        run.run_for(SignedDuration::from_secs(4));
        assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "silent {silent}\n{}", run.log_text());
        run.run_until_weights(&[(V1, 90), (V2, 10)]);
    }
}

#[test]
fn step_past_its_deadline_rolls_back_or_holds() {
    for (policy, phase) in [(OnFailure::Rollback, Phase::RolledBack), (OnFailure::Hold, Phase::Held)] {
        let mut run = installed();
        run.world().edit_spec(|rollout| rollout.spec.strategy.on_failure = policy);
        run.world().servers[2].load_time = SignedDuration::from_secs(90);
        let start = run.world().now;
        run.world().list_adapters(&[V1, V2], &[]);
        run.run_until_phase(phase);
        let elapsed = run.world().now.duration_since(start);
        assert!((60..=64).contains(&elapsed.as_secs()), "{elapsed:?}\n{}", run.log_text());
        assert!(run.world().status().message.contains("took longer than 1m"), "{}", run.world().status().message);
        assert_eq!(run.world().weights(), [(V1.to_owned(), 100)]);
        if policy == OnFailure::Hold {
            run.run_until_weights(&[(V1, 90), (V2, 10)]);
        }
    }
}

#[test]
fn deadline_does_not_count_while_paused() {
    let mut run = installed();
    run.world().servers[2].load_time = SignedDuration::from_secs(100);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(30));
    run.world().edit_spec(|rollout| rollout.spec.paused = true);
    run.run_for(SignedDuration::from_secs(60));
    run.world().edit_spec(|rollout| rollout.spec.paused = false);
    run.run_until_weights(&[(V1, 90), (V2, 10)]);
}

#[test]
fn count_changes_are_written_at_most_every_five_seconds() {
    let mut run = installed();
    run.world().servers[2].load_time = SignedDuration::from_secs(50);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(5));
    let before = run.world().status_writes;
    for tick in 0..400 {
        run.world().servers[1].ready = tick % 2 == 0;
        run.tick();
    }
    let writes = run.world().status_writes - before;
    assert!((6..=9).contains(&writes), "{writes} in 40 s\n{}", run.log_text());
}

#[test]
fn rewrite_that_failed_to_be_read_is_read_again() {
    let mut run = at_half();
    run.world().edit_rewrite(|rewrite| rewrite.spec.rules.clear());
    // Every read of the next reconcile fails, and nothing changes afterwards.
    run.world().faults = vec![Fault::None, Fault::Unavailable, Fault::Unavailable, Fault::Unavailable].into();
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
}

#[test]
fn idle_rollout_writes_nothing() {
    let mut run = installed();
    run.run_for(SignedDuration::from_secs(2));
    let writes = run.world().status_writes;
    for _ in 0..100 {
        run.world().changed = true;
        run.tick();
    }
    assert_eq!(run.world().status_writes, writes);
}

#[test]
fn unreachable_router_blocks_cleanup_but_not_abort() {
    let mut run = at_half();
    run.world().routers.push(SimRouter { reachable: false, ..SimRouter::new("router-1") });
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until_weights(&[(V2, 100)]);
    run.run_for(SignedDuration::from_secs(20));
    assert_eq!(run.world().phase(), Phase::Progressing);
    assert!(run.world().status().message.contains("router-1 cannot be queried"), "{}", run.world().status().message);
    assert_eq!(run.world().loaded_count(&id(V1)), 3);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_weights(&[(V1, 100)]);
    run.world().routers.pop();
    run.run_until_phase(Phase::RolledBack);
}

#[test]
fn rollout_waits_while_there_is_no_router() {
    let mut run = at_half();
    let routers = std::mem::take(&mut run.world().routers);
    run.world().set_intent(IntentKind::PromoteFull);
    run.run_until_weights(&[(V2, 100)]);
    run.run_for(SignedDuration::from_secs(20));
    assert!(run.world().status().message.contains("there is no router"), "{}", run.world().status().message);
    run.world().routers = routers;
    run.world().rewrites_changed();
    run.run_until_phase(Phase::Succeeded);
}

#[test]
fn lagging_router_keeps_the_old_adapter_loaded() {
    let mut run = at_half();
    let lagging = SimRouter { lag: SignedDuration::from_secs(15), ..run.world().routers[0].clone() };
    run.world().routers.push(SimRouter { name: "router-1".to_owned(), ..lagging });
    run.world().set_intent(IntentKind::Abort);
    run.run_for(SignedDuration::from_secs(10));
    assert_eq!(run.world().phase(), Phase::RollingBack);
    assert_eq!(run.world().loaded_count(&id(V2)), 3);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("v2 is unloaded", |world| world.loaded_count(&id(V2)) == 0);
}

#[test]
fn abort_reaches_the_rewrite_while_the_fleet_hangs() {
    let mut run = at_half();
    run.world().fleet_hangs = true;
    run.world().set_intent(IntentKind::Abort);
    run.reconcile();
    assert_eq!(run.world().weights(), [(V1.to_owned(), 100)], "{}", run.log_text());
    run.world().fleet_hangs = false;
    run.run_until_phase(Phase::RolledBack);
}

#[test]
fn pool_without_ready_servers_waits_with_a_message() {
    let mut run = installed();
    let now = run.world().now;
    for server in 0..3 {
        run.world().servers[server].crash(now, SignedDuration::from_secs(100));
    }
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_for(SignedDuration::from_secs(90));
    assert_eq!(run.world().phase(), Phase::Pending);
    assert!(run.world().status().message.contains("no server of the pool"), "{}", run.world().status().message);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
}
