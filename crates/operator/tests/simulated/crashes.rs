//! The guide with a fault at every single write, one per run: the end state is always the same.

use crate::{
    driver::SimRun,
    guide::{ROLLOUT, V1, V2},
    world::{Fault, World, id},
};
use rollora_api::rollout::{
    IntentKind,
    status::{Phase, RetirementState},
};

const QUICK: &str = "{ duration: 200ms }";

/// Runs the guide without long pauses until v1 is unloaded, then aborts v3 at half.
fn run_guide(faults: Vec<Fault>) -> SimRun {
    let rollout = ROLLOUT.replace("{ duration: 5s }", QUICK).replace("delay: 2s", "delay: 0s");
    let mut world = World::new(&rollout, 2, &[V1]);
    world.write_faults = faults.into();
    let mut run = SimRun::new(world);
    run.run_until_phase(Phase::Succeeded);
    run.world().list_adapters(&[V1, V2], &[]);
    run.run_until_weights(&[(V1, 50), (V2, 50)]);
    run.run_until_phase(Phase::Paused);
    run.world().set_intent(IntentKind::Promote);
    run.run_until("v1 is gone", |world| {
        world.loaded_count(&id(V1)) == 0
            && world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone)
    });
    run.world().list_adapters(&[V2, "small-v3"], &[V1]);
    run.run_until_weights(&[(V2, 50), ("small-v3", 50)]);
    run.run_until_phase(Phase::Paused);
    run.world().set_intent(IntentKind::Abort);
    run.run_until_phase(Phase::RolledBack);
    run.run_until("v3 is gone", |world| world.loaded_count(&id("small-v3")) == 0);
    run
}

/// Returns the part of the state that must be the same at the end of each run.
fn end_state(run: &SimRun) -> String {
    let world = run.world();
    let status = world.status();
    let directives = world.adapters.directives_text.clone().unwrap();
    let history: Vec<_> = status.history.iter().map(|entry| (&entry.id, &entry.outcome)).collect();
    format!("{:?}\n{}\n{directives}\n{:?}\n{history:?}", world.weights(), world.adapters.user_text, status.revision)
}

fn fail_every_write(fault: Fault) {
    let plain = run_guide(Vec::new());
    let expected = end_state(&plain);
    let writes = plain.world().writes;
    assert!(writes > 25, "{writes}");
    for write in 0..writes {
        let mut faults = vec![Fault::None; write];
        faults.push(fault);
        let run = run_guide(faults);
        assert_eq!(end_state(&run), expected, "{fault:?} at write {write}\n{}", run.log_text());
    }
}

#[test]
fn crash_before_any_write_reaches_the_same_end() {
    fail_every_write(Fault::CrashBefore);
}

#[test]
fn crash_after_any_write_reaches_the_same_end() {
    fail_every_write(Fault::CrashAfter);
}

#[test]
fn lost_response_to_any_write_reaches_the_same_end() {
    fail_every_write(Fault::LostResponse);
}

#[test]
fn hanging_write_reaches_the_same_end() {
    fail_every_write(Fault::Hang);
}
