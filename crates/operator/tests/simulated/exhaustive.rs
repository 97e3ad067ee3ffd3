//! A small world, exhaustively: one server, one router, two adapters, and every sequence of things that people, servers,
//! routers and failing calls can do in it. The operator starts anew after each of them, as after a crash, and in the end
//! everything is well again and the rollout has to come to rest.

use crate::{
    driver::SimRun,
    guide::ROLLOUT,
    schedules::{WorldAction, apply_action, is_long, run_to_rest},
    world::{Fault, World},
};
use rollora_api::rollout::{IntentKind, status::Phase};

fn alphabet() -> Vec<WorldAction> {
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

/// Tries every letter after this world, each with every wait behind it, and goes on from there. Returns how many
/// sequences came to their end.
fn explore(world: &World, depth: usize, waits: &[usize], path: &mut Vec<String>) -> usize {
    let mut ends = 0;
    for (letter, wait) in alphabet().iter().flat_map(|letter| waits.iter().map(move |wait| (letter, *wait))) {
        let mut run = SimRun::new(world.clone());
        run.world().changed = true;
        path.push(format!("{letter:?}, then {wait} ticks"));
        apply_action(&mut run, letter);
        (0..wait).for_each(|_| run.tick());
        run.world().check_message();
        if depth > 1 {
            let next = run.world().clone();
            ends += explore(&next, depth - 1, waits, path);
        } else {
            run_to_rest(&mut run, &[], None);
            ends += 1;
        }
        let broken = run.world().violations.clone();
        assert!(broken.is_empty(), "{path:#?}: {broken:#?}\n{}", run.log_text());
        path.pop();
    }
    ends
}

fn small_world() -> World {
    World::new(&ROLLOUT.replace("{ duration: 5s }", "{ duration: 500ms }"), 1, &["small-v1"])
}

fn explore_from(world: &World) {
    let (depth, waits) = if is_long() { (3, &[1, 30][..]) } else { (2, &[8][..]) };
    let letters = alphabet().len() * waits.len();
    let ends = explore(world, depth, waits, &mut Vec::new());
    assert_eq!(ends, letters.pow(u32::try_from(depth).unwrap()));
}

#[test]
fn whatever_happens_after_an_installation_nobody_is_hurt() {
    let mut run = SimRun::new(small_world());
    run.run_until_phase(Phase::Succeeded);
    let world = run.world().clone();
    explore_from(&world);
}

#[test]
fn whatever_happens_at_half_nobody_is_hurt() {
    let mut run = SimRun::new(small_world());
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&["small-v1", "small-v2"], &[]);
    run.run_until_weights(&[("small-v1", 50), ("small-v2", 50)]);
    let world = run.world().clone();
    explore_from(&world);
}
