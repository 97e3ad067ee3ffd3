//! Every single write of the guide goes wrong once, in every way: the end is always the same.

use crate::{
    driver::Run,
    guide::{ROLLOUT, V1, V2},
    world::{Fault, World, id},
};
use rollora_api::rollout::{
    IntentKind,
    status::{Phase, RetirementState},
};

const QUICK: &str = "{ duration: 200ms }";

/// The guide without long pauses, up to v1 being gone, then v3 being aborted at half.
fn story(faults: Vec<Fault>) -> Run {
    let rollout = ROLLOUT.replace("{ duration: 5s }", QUICK).replace("delay: 2s", "delay: 0s");
    let mut world = World::new(&rollout, 2, &[V1]);
    world.write_faults = faults.into();
    let mut run = Run::new(world);
    run.until_phase(Phase::Succeeded);
    run.world().list(&[V1, V2], &[]);
    run.until_weights(&[(V1, 50), (V2, 50)]);
    run.until_phase(Phase::Paused);
    run.world().intend(IntentKind::Promote);
    run.until("v1 is gone", |world| {
        world.holders(&id(V1)) == 0 && world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone)
    });
    run.world().list(&[V2, "small-v3"], &[V1]);
    run.until_weights(&[(V2, 50), ("small-v3", 50)]);
    run.until_phase(Phase::Paused);
    run.world().intend(IntentKind::Abort);
    run.until_phase(Phase::RolledBack);
    run.until("v3 is gone", |world| world.holders(&id("small-v3")) == 0);
    run
}

/// What has to be the same in the end.
fn end(run: &Run) -> String {
    let world = run.world();
    let status = world.status();
    let key = world.adapters.key_text.clone().unwrap();
    let history: Vec<_> = status.history.iter().map(|ended| (&ended.id, &ended.outcome)).collect();
    format!("{:?}\n{}\n{key}\n{:?}\n{history:?}", world.weights(), world.adapters.user_text, status.revision)
}

fn at_every_write(fault: Fault) {
    let plain = story(Vec::new());
    let expected = end(&plain);
    let writes = plain.world().writes;
    assert!(writes > 25, "{writes}");
    for write in 0..writes {
        let mut faults = vec![Fault::None; write];
        faults.push(fault);
        let run = story(faults);
        assert_eq!(end(&run), expected, "{fault:?} at write {write}\n{}", run.story());
    }
}

#[test]
fn a_crash_before_any_write_ends_the_same() {
    at_every_write(Fault::CrashBefore);
}

#[test]
fn a_crash_after_any_write_ends_the_same() {
    at_every_write(Fault::CrashAfter);
}

#[test]
fn an_answer_that_is_lost_at_any_write_ends_the_same() {
    at_every_write(Fault::LostAnswer);
}

#[test]
fn a_write_that_hangs_ends_the_same() {
    at_every_write(Fault::Hang);
}
