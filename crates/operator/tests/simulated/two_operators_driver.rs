//! Two concurrent operators in one world, stepped call by call in any order. Each can be stopped in the middle of a
//! reconcile for any time, read documents with a lag, or crash; neither knows of the other.

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

struct OperatorSlot {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    reconcile: Option<ReconcileFuture>,
    dirty: bool,
    due: Option<Timestamp>,
    /// Whether it makes no progress, wherever it is.
    stopped: bool,
    /// Number of the call at which it stops and the other one resumes.
    stop_at_call: Option<usize>,
}

pub(crate) struct TwoOperators {
    sim: Sim,
    slots: [OperatorSlot; 2],
    runtime: tokio::runtime::Runtime,
    /// State of the random choice of the next operator.
    random_state: u64,
}

/// Maximum number of steps of each operator per tick: more than the calls of a few reconciles.
const MAX_STEPS: usize = 40;

impl TwoOperators {
    pub(crate) fn new(mut world: World, seed: u64) -> Self {
        world.history = Some(Vec::new());
        world.record_snapshot();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let new_slot = |number: u64| {
            let sim = sim.with_stepping(Stepping { seed: seed.wrapping_add(number), ..Stepping::default() });
            let operator = Rc::new(new_operator(&sim));
            OperatorSlot { sim, operator, reconcile: None, dirty: true, due: None, stopped: false, stop_at_call: None }
        };
        Self { slots: [new_slot(1), new_slot(2)], sim, runtime, random_state: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn set_stopped(&mut self, index: usize, stopped: bool) {
        let action = if stopped { "stops" } else { "goes on" };
        self.world().log_event(format!("operator {index} {action}"));
        self.slots[index].stopped = stopped;
    }

    /// Kills an operator in the middle of anything, and starts another one in its place.
    pub(crate) fn kill(&mut self, index: usize) {
        self.world().log_event(format!("operator {index} dies"));
        self.restart(index);
    }

    pub(crate) fn set_lags(&mut self, index: usize, lags: [SignedDuration; 3]) {
        if let Some(mut stepping) = self.slots[index].sim.stepping() {
            stepping.lags = lags;
        }
    }

    /// Returns the number of port calls that an operator has made.
    pub(crate) fn calls(&self, index: usize) -> usize {
        self.slots[index].sim.stepping().map_or(0, |stepping| stepping.calls)
    }

    /// Stops an operator when it has made this number of calls; from then on the other one runs instead.
    pub(crate) fn stop_at_call(&mut self, index: usize, call: usize) {
        let passed = self.calls(index) >= call;
        self.slots[index].stop_at_call = (!passed).then_some(call);
    }

    pub(crate) fn is_stopped(&self, index: usize) -> bool {
        self.slots[index].stopped
    }

    pub(crate) fn resume(&mut self, index: usize) {
        if self.slots[index].stopped {
            self.set_stopped(index, false);
        }
    }

    fn restart(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        slot.reconcile = None;
        slot.operator = Rc::new(new_operator(&slot.sim));
        (slot.dirty, slot.due, slot.stopped) = (true, None, false);
    }

    fn mark_dirty(&mut self) {
        if std::mem::take(&mut self.sim.world().changed) {
            self.slots.iter_mut().for_each(|slot| slot.dirty = true);
        }
    }

    /// Polls one operator once. Returns whether it had anything to do.
    pub(crate) fn step(&mut self, number: usize) -> bool {
        self.mark_dirty();
        let world = self.sim.world();
        let (now, name) = (world.now, world.rollout.metadata.name.clone());
        drop(world);
        let slot = &mut self.slots[number];
        if slot.stopped {
            return false;
        }
        if slot.reconcile.is_none() {
            if !slot.dirty && slot.due.is_none_or(|due| due > now) {
                return false;
            }
            (slot.dirty, slot.due) = (false, None);
            let (operator, crash) = (Rc::clone(&slot.operator), slot.sim.crash.clone());
            let key = RolloutKey { namespace: None, name };
            slot.reconcile = Some(Box::pin(async move {
                tokio::select! {
                    biased;
                    requeue = operator.reconcile(&key) => Some(requeue),
                    () = crash.notified() => None,
                }
            }));
        }
        let guard = self.runtime.enter();
        let poll = slot.reconcile.as_mut().unwrap().as_mut().poll(&mut Context::from_waker(noop_waker_ref()));
        drop(guard);
        self.sim.world().record_snapshot();
        if self.slots[number].stop_at_call.is_some_and(|call| self.calls(number) >= call) {
            self.slots[number].stop_at_call = None;
            self.set_stopped(number, true);
            self.set_stopped(1 - number, false);
        }
        let Poll::Ready(requeue) = poll else { return true };
        let Some(requeue) = requeue else {
            self.sim.world().log_event(format!("operator {number} crashed"));
            self.restart(number);
            return true;
        };
        let slot = &mut self.slots[number];
        (slot.reconcile, slot.due) = (None, next_due(&requeue, now));
        true
    }

    fn next_random(&mut self) -> u64 {
        self.random_state ^= self.random_state << 13;
        self.random_state ^= self.random_state >> 7;
        self.random_state ^= self.random_state << 17;
        self.random_state
    }

    /// Advances time by one tick without polling an operator.
    pub(crate) fn tick_world(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record_snapshot();
    }

    /// Advances time by one tick, and polls both operators in random order until they are idle.
    pub(crate) fn tick(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record_snapshot();
        drop(world);
        // A lagging operator must reconcile again when it can read a change.
        for slot in &mut self.slots {
            let lagging = slot.sim.stepping().is_some_and(|stepping| stepping.lags.iter().any(|lag| !lag.is_zero()));
            slot.dirty |= lagging;
        }
        for _ in 0..2 * MAX_STEPS {
            let first = usize::try_from(self.next_random() % 2).unwrap_or_default();
            let was_stopped = self.slots[0].stopped;
            if !self.step(first) && !self.step(1 - first) {
                return;
            }
            if !was_stopped && self.slots[0].stopped {
                // Lets the test act before the other operator makes progress.
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
        let violations = self.world().violations.clone();
        assert!(violations.is_empty(), "{what}: {violations:#?}\n{}", self.log_text());
    }

    pub(crate) fn log_text(&self) -> String {
        self.sim.log.text()
    }
}
