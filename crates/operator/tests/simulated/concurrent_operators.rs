//! Two concurrent operators: one that was stopped in the middle of a reconcile never undoes what the other has done
//! since.

use crate::{
    guide::{ROLLOUT, V1, V2},
    schedules::is_long,
    two_operators_driver::TwoOperators,
    world::{World, id},
};
use jiff::SignedDuration;
use rollora_api::rollout::{
    IntentKind, Rollout,
    status::{Phase, RetirementState},
};

const QUICK: &str = "{ duration: 200ms }";

fn quick_world() -> World {
    let rollout = ROLLOUT.replace("{ duration: 5s }", QUICK).replace("delay: 2s", "delay: 0s");
    World::new(&rollout, 2, &[V1])
}

/// One step of the story: an action of a person, and the condition that ends it.
struct StoryStep {
    start: fn(&mut World),
    is_done: fn(&World) -> bool,
    /// Whether the next step may begin before this one is done.
    is_interruptible: bool,
}

fn set_adapter_id(name: &str) -> impl FnOnce(&mut Rollout) {
    let desired = id(name);
    move |rollout| {
        rollout.spec.adapter.follow = None;
        rollout.spec.adapter.id = Some(desired);
    }
}

fn has_retired(world: &World, name: &str, states: &[RetirementState]) -> bool {
    world.status().retired.iter().any(|entry| entry.id == id(name) && states.contains(&entry.state))
}

fn is_paused_at_half(world: &World, name: &str) -> bool {
    world.phase() == Phase::Paused && world.weights().iter().any(|(id, weight)| id == name && *weight == 50)
}

const V3: &str = "small-v3";

/// To half, promoted, v1 unlisted and unloaded, v1 desired again, v3 tried, aborted and tried again.
const STORY: &[StoryStep] = &[
    StoryStep { start: |_| (), is_done: |world| world.phase() == Phase::Succeeded, is_interruptible: false },
    StoryStep {
        start: |world| {
            world.list_adapters(&[V1, V2], &[]);
            world.edit_spec(set_adapter_id(V2));
        },
        is_done: |world| is_paused_at_half(world, V2),
        is_interruptible: false,
    },
    StoryStep {
        start: |world| world.set_intent(IntentKind::Promote),
        is_done: |world| {
            has_retired(world, V1, &[RetirementState::Unlisting, RetirementState::Unloading, RetirementState::Gone])
        },
        is_interruptible: true,
    },
    StoryStep {
        start: |world| world.edit_spec(set_adapter_id(V1)),
        is_done: |world| {
            world.status().revision.desired == Some(id(V1)) && world.weights().iter().any(|(id, _)| id == V1)
        },
        is_interruptible: true,
    },
    StoryStep {
        start: |world| {
            world.list_adapters(&[V1, V2, V3], &[]);
            world.edit_spec(set_adapter_id(V3));
        },
        is_done: |world| is_paused_at_half(world, V3),
        is_interruptible: false,
    },
    StoryStep {
        start: |world| world.set_intent(IntentKind::Abort),
        is_done: |world| world.loaded_count(&id(V3)) == 0,
        is_interruptible: true,
    },
    StoryStep {
        start: |world| world.set_intent(IntentKind::Retry),
        is_done: |world| is_paused_at_half(world, V3),
        is_interruptible: true,
    },
];

/// When the first operator stops, and when it resumes.
#[derive(Debug, Clone, Copy)]
struct StopPoint {
    /// Number of the port call at which it stops.
    call: usize,
    /// Whether the next step of the story begins immediately, in the middle of the current one.
    interrupts: bool,
    /// Number of story steps after which it resumes.
    resume_after: usize,
}

/// Runs the story with operator 0 alone up to the call at which it stops, with operator 1 from there, and with both at
/// the end. Returns `None` if the story ended before the call.
fn run_with_stop(stop: StopPoint) -> Option<()> {
    let mut operators = TwoOperators::new(quick_world(), 7);
    operators.set_stopped(1, true);
    operators.stop_at_call(0, stop.call);
    let mut stopped_at_step = None;
    for (number, step) in STORY.iter().enumerate() {
        (step.start)(&mut operators.world());
        let end = operators.world().now + SignedDuration::from_mins(3);
        while !(step.is_done)(&operators.world()) {
            operators.tick();
            if stopped_at_step.is_none() && operators.is_stopped(0) {
                stopped_at_step = Some(number);
                if stop.interrupts && step.is_interruptible {
                    break;
                }
            }
            let in_time = operators.world().now < end;
            assert!(in_time, "story step {number} does not end: {stop:?}\n{}", operators.log_text());
        }
        if stopped_at_step.is_some_and(|stopped| number >= stopped + stop.resume_after) {
            operators.resume(0);
        }
    }
    operators.resume(0);
    operators.run_for(SignedDuration::from_secs(3));
    operators.check_violations(&format!("{stop:?}"));
    stopped_at_step.map(|_| ())
}

/// A short run tries only some of the calls, different ones for each variant.
#[test]
fn operator_stopped_at_any_call_undoes_nothing_later() {
    let long = is_long();
    let mut calls = 0;
    for (variant, steps) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
        for interrupts in [true, false] {
            let mut call = 1 + variant;
            while run_with_stop(StopPoint { call, interrupts, resume_after: steps }).is_some() {
                call += if long { 1 } else { 29 };
                calls += 1;
            }
        }
    }
    assert!(calls > 30, "{calls}");
}

/// Steps operator 0 alone until the condition holds, and stops it there: after the write of a status, before its
/// effects.
fn stop_operator_when(operators: &mut TwoOperators, condition: impl Fn(&World) -> bool) {
    operators.set_stopped(1, true);
    for _ in 0..3000 {
        while operators.step(0) {
            if condition(&operators.world()) {
                operators.set_stopped(0, true);
                operators.set_stopped(1, false);
                return;
            }
        }
        operators.tick_world();
    }
    panic!("the condition never holds\n{}", operators.log_text());
}

fn run_until(operators: &mut TwoOperators, what: &str, condition: impl Fn(&World) -> bool) {
    for _ in 0..3000 {
        if condition(&operators.world()) {
            return operators.check_violations(what);
        }
        operators.tick();
    }
    panic!("not in time: {what}\n{}", operators.log_text());
}

fn run_story_to(steps: usize) -> TwoOperators {
    let mut operators = TwoOperators::new(quick_world(), 7);
    for step in &STORY[..steps] {
        (step.start)(&mut operators.world());
        run_until(&mut operators, "a story step", step.is_done);
    }
    operators
}

/// Regression: the edit was written after the id had become desired again, so servers unloaded it.
#[test]
fn stale_edit_does_not_unlist_an_id_desired_again() {
    let mut operators = run_story_to(2);
    operators.world().set_intent(IntentKind::Promote);
    stop_operator_when(&mut operators, |world| has_retired(world, V1, &[RetirementState::Unlisting]));
    operators.world().edit_spec(set_adapter_id(V1));
    run_until(&mut operators, "v1 serves again", |world| world.weights().iter().any(|(id, _)| id == V1));
    operators.resume(0);
    operators.run_for(SignedDuration::from_secs(10));
    operators.check_violations("after operator 0 resumed");
}

/// The same race with an id that was rejected and is then retried.
#[test]
fn stale_directives_do_not_reject_a_retried_id() {
    let mut operators = run_story_to(5);
    operators.world().set_intent(IntentKind::Abort);
    stop_operator_when(&mut operators, |world| {
        let status = world.status();
        status.rejected.iter().any(|rejected| rejected.id == id(V3)) && !status.admission.admitted.contains(&id(V3))
    });
    operators.world().set_intent(IntentKind::Retry);
    run_until(&mut operators, "v3 serves again", |world| world.weights().iter().any(|(id, _)| id == V3));
    operators.resume(0);
    operators.run_for(SignedDuration::from_secs(10));
    operators.check_violations("after operator 0 resumed");
}

/// An operator that reads an outdated Rollout but the current file must not write the file.
#[test]
fn outdated_rollout_does_not_edit_the_current_file() {
    let mut operators = run_story_to(2);
    operators.world().set_intent(IntentKind::Promote);
    stop_operator_when(&mut operators, |world| has_retired(world, V1, &[RetirementState::Unlisting]));
    operators.world().edit_spec(set_adapter_id(V1));
    run_until(&mut operators, "v1 serves again", |world| world.weights().iter().any(|(id, _)| id == V1));
    let (long_lag, no_lag) = (SignedDuration::from_mins(2), SignedDuration::ZERO);
    operators.kill(0);
    operators.set_lags(0, [long_lag, no_lag, no_lag]);
    operators.run_for(SignedDuration::from_secs(10));
    operators.check_violations("after operator 0 resumed");
}
