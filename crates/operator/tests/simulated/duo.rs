//! Two operators at once in one world, moved call by call in any order: each can be stopped in the middle of a reconcile
//! for as long as one likes, hear of documents late, or die; neither knows of the other.

use crate::{
    driver::{due, operator},
    ports::{Gait, Sim},
    world::World,
};
use futures_util::task::noop_waker_ref;
use jiff::{SignedDuration, Timestamp};
use rollora_operator::{Next, Operator, ports::RolloutKey};
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::MutexGuard,
    task::{Context, Poll},
};

type Reconcile = Pin<Box<dyn Future<Output = Option<Next>>>>;

/// One of the operators.
struct Side {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    reconcile: Option<Reconcile>,
    woken: bool,
    due: Option<Timestamp>,
    /// It stands still, wherever it is.
    stopped: bool,
    /// The call at which it stops, and the other begins.
    stops_at: Option<usize>,
}

pub(crate) struct Duo {
    sim: Sim,
    sides: [Side; 2],
    runtime: tokio::runtime::Runtime,
    /// Whose turn it is.
    random: u64,
}

/// How often each operator is moved in a tick, at most: more than the calls of a few reconciles.
const MOVES: usize = 40;

impl Duo {
    pub(crate) fn new(mut world: World, seed: u64) -> Self {
        world.past = Some(Vec::new());
        world.record();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let side = |number: u64| {
            let sim = sim.beside(Gait { seed: seed.wrapping_add(number), ..Gait::default() });
            let operator = Rc::new(operator(&sim));
            Side { sim, operator, reconcile: None, woken: true, due: None, stopped: false, stops_at: None }
        };
        Self { sides: [side(1), side(2)], sim, runtime, random: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn stop(&mut self, side: usize, stopped: bool) {
        let what = if stopped { "stops" } else { "goes on" };
        self.world().note(format!("operator {side} {what}"));
        self.sides[side].stopped = stopped;
    }

    /// It dies wherever it is, and another one takes its place.
    pub(crate) fn kill(&mut self, side: usize) {
        self.world().note(format!("operator {side} dies"));
        self.renew(side);
    }

    pub(crate) fn lag(&mut self, side: usize, lags: [SignedDuration; 3]) {
        if let Some(mut gait) = self.sides[side].sim.gait() {
            gait.lags = lags;
        }
    }

    /// Calls of ports that an operator has made.
    pub(crate) fn calls(&self, side: usize) -> usize {
        self.sides[side].sim.gait().map_or(0, |gait| gait.calls)
    }

    /// It stops when it has made so many calls; from then on the other goes instead.
    pub(crate) fn stop_at_call(&mut self, side: usize, call: usize) {
        let passed = self.calls(side) >= call;
        self.sides[side].stops_at = (!passed).then_some(call);
    }

    pub(crate) fn is_stopped(&self, side: usize) -> bool {
        self.sides[side].stopped
    }

    pub(crate) fn go_on(&mut self, side: usize) {
        if self.sides[side].stopped {
            self.stop(side, false);
        }
    }

    fn renew(&mut self, number: usize) {
        let side = &mut self.sides[number];
        side.reconcile = None;
        side.operator = Rc::new(operator(&side.sim));
        (side.woken, side.due, side.stopped) = (true, None, false);
    }

    fn hear(&mut self) {
        if std::mem::take(&mut self.sim.world().changed) {
            self.sides.iter_mut().for_each(|side| side.woken = true);
        }
    }

    /// Moves one operator by one turn. Returns whether it had anything to do.
    pub(crate) fn move_on(&mut self, number: usize) -> bool {
        self.hear();
        let world = self.sim.world();
        let (now, name) = (world.now, world.rollout.metadata.name.clone());
        drop(world);
        let side = &mut self.sides[number];
        if side.stopped {
            return false;
        }
        if side.reconcile.is_none() {
            if !side.woken && side.due.is_none_or(|due| due > now) {
                return false;
            }
            (side.woken, side.due) = (false, None);
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
        self.sim.world().record();
        if self.sides[number].stops_at.is_some_and(|call| self.calls(number) >= call) {
            self.sides[number].stops_at = None;
            self.stop(number, true);
            self.stop(1 - number, false);
        }
        let Poll::Ready(next) = polled else { return true };
        let Some(next) = next else {
            self.sim.world().note(format!("operator {number} crashed"));
            self.renew(number);
            return true;
        };
        let side = &mut self.sides[number];
        (side.reconcile, side.due) = (None, due(&next, now));
        true
    }

    fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// One tick of time in which nobody is moved.
    pub(crate) fn tick_alone(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record();
    }

    /// One tick of time, and turns of both operators in any order.
    pub(crate) fn tick(&mut self) {
        let mut world = self.sim.world();
        world.tick();
        world.record();
        drop(world);
        // What somebody hears of late is news when it is heard of.
        for side in &mut self.sides {
            let late = side.sim.gait().is_some_and(|gait| gait.lags.iter().any(|lag| !lag.is_zero()));
            side.woken |= late;
        }
        for _ in 0..2 * MOVES {
            let first = usize::try_from(self.chance() % 2).unwrap_or_default();
            let was_stopped = self.sides[0].stopped;
            if !self.move_on(first) && !self.move_on(1 - first) {
                return;
            }
            if !was_stopped && self.sides[0].stopped {
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
    pub(crate) fn check(&self, what: &str) {
        let broken = self.world().broken.clone();
        assert!(broken.is_empty(), "{what}: {broken:#?}\n{}", self.story());
    }

    pub(crate) fn story(&self) -> String {
        self.sim.log.told()
    }
}
