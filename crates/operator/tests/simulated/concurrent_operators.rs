//! Two operators at once: the one that was stopped in the middle of something never undoes what the other has done since.

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

/// A chapter of what people do: what somebody does, and when that has come to its end.
struct StoryStep {
    start: fn(&mut World),
    is_done: fn(&World) -> bool,
    /// Whether what comes next may as well come in the middle of this one.
    is_interruptible: bool,
}

fn set_adapter_id(name: &str) -> impl FnOnce(&mut Rollout) {
    let wanted = id(name);
    move |rollout| {
        rollout.spec.adapter.follow = None;
        rollout.spec.adapter.id = Some(wanted);
    }
}

fn has_retired(world: &World, name: &str, states: &[RetirementState]) -> bool {
    world.status().retired.iter().any(|entry| entry.id == id(name) && states.contains(&entry.state))
}

fn is_paused_at_half(world: &World, name: &str) -> bool {
    world.phase() == Phase::Paused && world.weights().iter().any(|(id, weight)| id == name && *weight == 50)
}

const V3: &str = "small-v3";

/// To half, promoted, v1 unlisted and unloaded, v1 wanted again, v3 tried and aborted and tried again.
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

/// Where the first operator stops, and when it goes on.
#[derive(Debug, Clone, Copy)]
struct StopPoint {
    /// The call at which it stops.
    call: usize,
    /// Whether people go on at once, in the middle of what was under way.
    interrupts: bool,
    /// So many chapters later it goes on.
    resume_after: usize,
}

/// Runs the story with operator 0 alone up to a call at which it stops, with operator 1 from there, and with both in the
/// end. None where the story was over before the call.
fn run_with_stop(stop: StopPoint) -> Option<()> {
    let mut duo = TwoOperators::new(quick_world(), 7);
    duo.set_stopped(1, true);
    duo.stop_at_call(0, stop.call);
    let mut stopped_in = None;
    for (number, chapter) in STORY.iter().enumerate() {
        (chapter.start)(&mut duo.world());
        let end = duo.world().now + SignedDuration::from_mins(3);
        while !(chapter.is_done)(&duo.world()) {
            duo.tick();
            if stopped_in.is_none() && duo.is_stopped(0) {
                stopped_in = Some(number);
                if stop.interrupts && chapter.is_interruptible {
                    break;
                }
            }
            let in_time = duo.world().now < end;
            assert!(in_time, "chapter {number} does not end: {stop:?}\n{}", duo.log_text());
        }
        if stopped_in.is_some_and(|stopped| number >= stopped + stop.resume_after) {
            duo.resume(0);
        }
    }
    duo.resume(0);
    duo.run_for(SignedDuration::from_secs(3));
    duo.check_violations(&format!("{stop:?}"));
    stopped_in.map(|_| ())
}

/// In a short run only some of the calls, others in each.
#[test]
fn one_that_was_stopped_at_any_call_undoes_nothing_when_it_goes_on() {
    let long = is_long();
    let mut calls = 0;
    for (variant, chapters) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
        for cuts in [true, false] {
            let mut call = 1 + variant;
            while run_with_stop(StopPoint { call, interrupts: cuts, resume_after: chapters }).is_some() {
                call += if long { 1 } else { 29 };
                calls += 1;
            }
        }
    }
    assert!(calls > 30, "{calls}");
}

/// Moves operator 0 alone until this is true, and stops it there: after the write of a status, before its effects.
fn stop_operator_when(duo: &mut TwoOperators, is_so: impl Fn(&World) -> bool) {
    duo.set_stopped(1, true);
    for _ in 0..3000 {
        while duo.step(0) {
            if is_so(&duo.world()) {
                duo.set_stopped(0, true);
                duo.set_stopped(1, false);
                return;
            }
        }
        duo.tick_world();
    }
    panic!("it does not come so far\n{}", duo.log_text());
}

fn run_until(duo: &mut TwoOperators, what: &str, is_so: impl Fn(&World) -> bool) {
    for _ in 0..3000 {
        if is_so(&duo.world()) {
            return duo.check_violations(what);
        }
        duo.tick();
    }
    panic!("not in time: {what}\n{}", duo.log_text());
}

fn run_story_to(chapters: usize) -> TwoOperators {
    let mut duo = TwoOperators::new(quick_world(), 7);
    for chapter in &STORY[..chapters] {
        (chapter.start)(&mut duo.world());
        run_until(&mut duo, "a chapter", chapter.is_done);
    }
    duo
}

/// Found by thinking of it: the edit was written after the id had come back into service, and servers unloaded it.
#[test]
fn an_edit_that_was_begun_does_not_unlist_what_has_come_back_meanwhile() {
    let mut duo = run_story_to(2);
    duo.world().set_intent(IntentKind::Promote);
    stop_operator_when(&mut duo, |world| has_retired(world, V1, &[RetirementState::Unlisting]));
    duo.world().edit_spec(set_adapter_id(V1));
    run_until(&mut duo, "v1 serves again", |world| world.weights().iter().any(|(id, _)| id == V1));
    duo.resume(0);
    duo.run_for(SignedDuration::from_secs(10));
    duo.check_violations("after it went on");
}

/// The same with an id that was rejected and let go, and is tried again.
#[test]
fn a_key_that_was_begun_does_not_reject_what_is_tried_again_meanwhile() {
    let mut duo = run_story_to(5);
    duo.world().set_intent(IntentKind::Abort);
    stop_operator_when(&mut duo, |world| {
        let status = world.status();
        status.rejected.iter().any(|rejected| rejected.id == id(V3)) && !status.admission.admitted.contains(&id(V3))
    });
    duo.world().set_intent(IntentKind::Retry);
    run_until(&mut duo, "v3 serves again", |world| world.weights().iter().any(|(id, _)| id == V3));
    duo.resume(0);
    duo.run_for(SignedDuration::from_secs(10));
    duo.check_violations("after it went on");
}

/// An operator that reads an old Rollout and the present file: its decision was made for another time.
#[test]
fn one_that_hears_of_the_rollout_late_does_not_edit_the_file_of_today() {
    let mut duo = run_story_to(2);
    duo.world().set_intent(IntentKind::Promote);
    stop_operator_when(&mut duo, |world| has_retired(world, V1, &[RetirementState::Unlisting]));
    duo.world().edit_spec(set_adapter_id(V1));
    run_until(&mut duo, "v1 serves again", |world| world.weights().iter().any(|(id, _)| id == V1));
    let (late, at_once) = (SignedDuration::from_mins(2), SignedDuration::ZERO);
    duo.kill(0);
    duo.set_lags(0, [late, at_once, at_once]);
    duo.run_for(SignedDuration::from_secs(10));
    duo.check_violations("after it went on");
}
