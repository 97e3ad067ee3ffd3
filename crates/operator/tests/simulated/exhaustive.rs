//! Exhaustive search in a small world: one server, one router, two adapters, and every short sequence of actions by
//! people, servers, routers and failing calls. The operator restarts after each action, as after a crash. At the end
//! all faults are healed and the rollout must come to rest.

use crate::{
    driver::SimRun,
    guide::ROLLOUT,
    schedules::{WorldAction, apply_action, is_long, run_to_rest},
    world::{Fault, World},
};
use rollora_api::rollout::{IntentKind, status::Phase};

fn actions() -> Vec<WorldAction> {
    let list = |exist, not_exist| WorldAction::ListAdapters { exist, not_exist };
    vec![
        // v1 alone, both, v2 alone, v2 with v1 unlisted, v1 with v2 unlisted.
        list(1, 0),
        list(3, 0),
        list(2, 0),
        list(2, 1),
        list(1, 2),
        WorldAction::SetIntent(IntentKind::Promote),
        WorldAction::SetIntent(IntentKind::Abort),
        WorldAction::SetIntent(IntentKind::Retry),
        WorldAction::CrashServer { server: 0, seconds: 2 },
        WorldAction::ToggleRouterReachable,
        WorldAction::TogglePaused,
        WorldAction::InjectFaults(vec![Fault::None, Fault::CrashAfter]),
        WorldAction::InjectFaults(vec![Fault::LostResponse, Fault::CrashBefore]),
        WorldAction::DeleteRewrite,
        WorldAction::DeleteStatus,
    ]
}

/// Tries every action after this world, each followed by every wait, and continues from there. Returns the number of
/// complete sequences.
fn explore(world: &World, depth: usize, waits: &[usize], path: &mut Vec<String>) -> usize {
    let mut sequences = 0;
    for (action, wait) in actions().iter().flat_map(|action| waits.iter().map(move |wait| (action, *wait))) {
        let mut run = SimRun::new(world.clone());
        run.world().changed = true;
        path.push(format!("{action:?}, then {wait} ticks"));
        apply_action(&mut run, action);
        (0..wait).for_each(|_| run.tick());
        run.world().check_message();
        if depth > 1 {
            let next = run.world().clone();
            sequences += explore(&next, depth - 1, waits, path);
        } else {
            run_to_rest(&mut run, &[], None);
            sequences += 1;
        }
        let violations = run.world().violations.clone();
        assert!(violations.is_empty(), "{path:#?}: {violations:#?}\n{}", run.log_text());
        path.pop();
    }
    sequences
}

fn small_world() -> World {
    World::new(&ROLLOUT.replace("{ duration: 5s }", "{ duration: 500ms }"), 1, &["small-v1"])
}

fn explore_from(world: &World) {
    let (depth, waits) = if is_long() { (3, &[1, 30][..]) } else { (2, &[8][..]) };
    let choices = actions().len() * waits.len();
    let sequences = explore(world, depth, waits, &mut Vec::new());
    assert_eq!(sequences, choices.pow(u32::try_from(depth).unwrap()));
}

#[test]
fn all_sequences_after_installation_keep_the_invariants() {
    let mut run = SimRun::new(small_world());
    run.run_until_phase(Phase::Succeeded);
    let world = run.world().clone();
    explore_from(&world);
}

#[test]
fn all_sequences_at_half_keep_the_invariants() {
    let mut run = SimRun::new(small_world());
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&["small-v1", "small-v2"], &[]);
    run.run_until_weights(&[("small-v1", 50), ("small-v2", 50)]);
    let world = run.world().clone();
    explore_from(&world);
}
