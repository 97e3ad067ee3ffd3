//! Two operators at once in one world, moved call by call in any order: each can be stopped in the middle of a reconcile
//! for as long as one likes, hear of documents late, or die; neither knows of the other.

use crate::{
    driver::{new_operator, next_due},
    ports::{Sim, Stepping},
    world::World,
};
use futures_util::task::noop_waker_ref;
use jiff::{SignedDuration, Timestamp};
use rollora_operator::{Operator, Requeue, ports::RolloutKey};
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::MutexGuard,
    task::{Context, Poll},
};

type ReconcileFuture = Pin<Box<dyn Future<Output = Option<Requeue>>>>;

/// One of the operators.
struct OperatorSlot {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    reconcile: Option<ReconcileFuture>,
    dirty: bool,
    due: Option<Timestamp>,
    /// It stands still, wherever it is.
    stopped: bool,
    /// The call at which it stops, and the other begins.
    stop_at_call: Option<usize>,
}

pub(crate) struct TwoOperators {
    sim: Sim,
    slots: [OperatorSlot; 2],
    runtime: tokio::runtime::Runtime,
    /// Whose turn it is.
    random_state: u64,
}

/// How often each operator is moved in a tick, at most: more than the calls of a few reconciles.
const MAX_STEPS: usize = 40;

impl TwoOperators {
    pub(crate) fn new(mut world: World, seed: u64) -> Self {
        world.history = Some(Vec::new());
        world.record_snapshot();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let side = |number: u64| {
            let sim = sim.with_stepping(Stepping { seed: seed.wrapping_add(number), ..Stepping::default() });
            let operator = Rc::new(new_operator(&sim));
            OperatorSlot { sim, operator, reconcile: None, dirty: true, due: None, stopped: false, stop_at_call: None }
        };
        Self { slots: [side(1), side(2)], sim, runtime, random_state: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn set_stopped(&mut self, side: usize, stopped: bool) {
        let what = if stopped { "stops" } else { "goes on" };
        self.world().log_event(format!("operator {side} {what}"));
        self.slots[side].stopped = stopped;
    }

    /// It dies wherever it is, and another one takes its place.
    pub(crate) fn kill(&mut self, side: usize) {
        self.world().log_event(format!("operator {side} dies"));
        self.restart(side);
    }

    pub(crate) fn set_lags(&mut self, side: usize, lags: [SignedDuration; 3]) {
        if let Some(mut gait) = self.slots[side].sim.stepping() {
            gait.lags = lags;
        }
    }

    /// Calls of ports that an operator has made.
    pub(crate) fn calls(&self, side: usize) -> usize {
        self.slots[side].sim.stepping().map_or(0, |gait| gait.calls)
    }

    /// It stops when it has made so many calls; from then on the other goes instead.
    pub(crate) fn stop_at_call(&mut self, side: usize, call: usize) {
        let passed = self.calls(side) >= call;
        self.slots[side].stop_at_call = (!passed).then_some(call);
    }

    pub(crate) fn is_stopped(&self, side: usize) -> bool {
        self.slots[side].stopped
    }

    pub(crate) fn resume(&mut self, side: usize) {
        if self.slots[side].stopped {
            self.set_stopped(side, false);
        }
    }

    fn restart(&mut self, number: usize) {
        let side = &mut self.slots[number];
        side.reconcile = None;
        side.operator = Rc::new(new_operator(&side.sim));
        (side.dirty, side.due, side.stopped) = (true, None, false);
    }

    fn mark_dirty(&mut self) {
        if std::mem::take(&mut self.sim.world().changed) {
            self.slots.iter_mut().for_each(|side| side.dirty = true);
        }
    }

    /// Moves one operator by one turn. Returns whether it had anything to do.
    pub(crate) fn step(&mut self, number: usize) -> bool {
        self.mark_dirty();
        let world = self.sim.world();
        let (now, name) = (world.now, world.rollout.metadata.name.clone());
        drop(world);
        let side = &mut self.slots[number];
        if side.stopped {
            return false;
        }
        if side.reconcile.is_none() {
            if !side.dirty && side.due.is_none_or(|due| due > now) {
                return false;
            }
            (side.dirty, side.due) = (false, None);
            let (operator, crash) = (Rc::clone(&side.operator), side.sim.crash.clone());
            let key = RolloutKey { namespace: None, name };
            side.reconcile = Some(Box::pin(async move {
                tokio::select! {
                    biased;
                    next = operator.reconcile(&key) => Some(next),
                    () = crash.notified() => None,
                }
            }));
        }
        let entered = self.runtime.enter();
        let polled = side.reconcile.as_mut().unwrap().as_mut().poll(&mut Context::from_waker(noop_waker_ref()));
        drop(entered);
        self.sim.world().record_snapshot();
        if self.slots[number].stop_at_call.is_some_and(|call| self.calls(number) >= call) {
            self.slots[number].stop_at_call = None;
            self.set_stopped(number, true);
            self.set_stopped(1 - number, false);
        }
        let Poll::Ready(next) = polled else { return true };
        let Some(next) = next else {
            self.sim.world().log_event(format!("operator {number} crashed"));
            self.restart(number);
            return true;
        };
        let side = &mut self.slots[number];
        (side.reconcile, side.due) = (None, next_due(&next, now));
        true
    }

    fn next_random(&mut self) -> u64 {
        self.random_state ^= self.random_state << 13;
        self.random_state ^= self.random_state >> 7;
        self.random_state ^= self.random_state << 17;
        self.random_state
    }

    /// One tick of time in which nobody is moved.
    pub(crate) fn tick_world(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record_snapshot();
    }

    /// One tick of time, and turns of both operators in any order.
    pub(crate) fn tick(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record_snapshot();
        drop(world);
        // What somebody hears of late is news when it is heard of.
        for side in &mut self.slots {
            let late = side.sim.stepping().is_some_and(|gait| gait.lags.iter().any(|lag| !lag.is_zero()));
            side.dirty |= late;
        }
        for _ in 0..2 * MAX_STEPS {
            let first = usize::try_from(self.next_random() % 2).unwrap_or_default();
            let was_stopped = self.slots[0].stopped;
            if !self.step(first) && !self.step(1 - first) {
                return;
            }
            if !was_stopped && self.slots[0].stopped {
                // People may go on before anybody else does.
                return;
            }
        }
    }

    pub(crate) fn run_for(&mut self, time: SignedDuration) {
        let end = self.world().now + time;
        while self.world().now < end {
            self.tick();
        }
    }

    #[track_caller]
    pub(crate) fn check_violations(&self, what: &str) {
        let broken = self.world().violations.clone();
        assert!(broken.is_empty(), "{what}: {broken:#?}\n{}", self.log_text());
    }

    pub(crate) fn log_text(&self) -> String {
        self.sim.log.text()
    }
}
