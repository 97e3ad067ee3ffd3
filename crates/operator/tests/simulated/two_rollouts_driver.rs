//! The two Rollouts of a world, and one operator that works on both, or two of them at once. Reconciles are moved call by
//! call in any order, as they run at once where many Rollouts are.

use crate::{
    driver::{new_operator, next_due},
    ports::{Sim, Stepping},
    schedules::SimDriver,
    world::World,
};
use futures_util::task::noop_waker_ref;
use jiff::{SignedDuration, Timestamp};
use rollora_operator::{Operator, Requeue, ports::RolloutKey};
use std::{
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::MutexGuard,
    task::{Context, Poll},
};

/// What the Rollouts are called, and the names that their clients send.
pub(crate) const NAMES: [&str; 2] = ["small", "large"];

/// How many turns are taken in a tick, at most: more than those of a few reconciles of each.
const MAX_STEPS: usize = 200;

/// One Rollout, as an operator works on it.
struct RolloutWork {
    key: RolloutKey,
    reconcile: Option<Pin<Box<dyn Future<Output = Requeue>>>>,
    dirty: bool,
    due: Option<Timestamp>,
}

impl RolloutWork {
    fn for_rollout(name: &str) -> Self {
        let key = RolloutKey { namespace: None, name: name.to_owned() };
        Self { key, reconcile: None, dirty: true, due: None }
    }
}

/// One of the operators.
struct PairOperator {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    rollouts: [RolloutWork; 2],
    /// It stands still, wherever it is.
    stopped: bool,
}

impl PairOperator {
    fn new(sim: Sim) -> Self {
        Self {
            operator: Rc::new(new_operator(&sim)),
            sim,
            rollouts: NAMES.map(RolloutWork::for_rollout),
            stopped: false,
        }
    }

    /// Moves the reconcile of one Rollout by one turn. Returns whether there was anything to do.
    fn step(&mut self, number: usize) -> bool {
        let (now, work) = (self.sim.world().now, &mut self.rollouts[number]);
        if self.stopped || (work.reconcile.is_none() && !work.dirty && work.due.is_none_or(|due| due > now)) {
            return false;
        }
        let reconcile = work.reconcile.get_or_insert_with(|| {
            (work.dirty, work.due) = (false, None);
            let (operator, key) = (Rc::clone(&self.operator), work.key.clone());
            Box::pin(async move { operator.reconcile(&key).await })
        });
        let mut context = Context::from_waker(noop_waker_ref());
        let polled = reconcile.as_mut().poll(&mut context);
        let crashed = pin!(self.sim.crash.notified()).poll(&mut context).is_ready();
        if let Poll::Ready(next) = polled {
            (work.reconcile, work.due) = (None, next_due(&next, now));
        }
        if crashed {
            self.sim.world().log_event("an operator crashed");
            *self = Self::new(self.sim.clone());
        }
        true
    }
}

pub(crate) struct TwoRollouts {
    sim: Sim,
    operators: Vec<PairOperator>,
    runtime: tokio::runtime::Runtime,
    /// Whose turn it is.
    random_state: u64,
}

impl TwoRollouts {
    /// So many operators in this world.
    pub(crate) fn new(mut world: World, operators: u64, seed: u64) -> Self {
        world.history = Some(Vec::new());
        world.record_snapshot();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let gait = |number: u64| Stepping { seed: seed.wrapping_add(number), ..Stepping::default() };
        let operators = (0..operators).map(|number| PairOperator::new(sim.with_stepping(gait(number)))).collect();
        Self { operators, sim, runtime, random_state: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn log_text(&self) -> String {
        self.sim.log.text()
    }

    /// It stops where it is, or goes on.
    pub(crate) fn toggle_stopped(&mut self, hand: usize) {
        self.operators[hand].stopped ^= true;
    }

    /// It dies wherever it is, and another one takes its place.
    pub(crate) fn restart_operator(&mut self, hand: usize) {
        self.operators[hand] = PairOperator::new(self.operators[hand].sim.clone());
    }

    /// It hears of documents so late.
    pub(crate) fn set_lags(&mut self, hand: usize, lags: [SignedDuration; 3]) {
        if let Some(mut gait) = self.operators[hand].sim.stepping() {
            gait.lags = lags;
        }
    }

    /// All operators go on, and hear of everything at once.
    pub(crate) fn resume_all(&mut self) {
        for hand in 0..self.operators.len() {
            self.operators[hand].stopped = false;
            self.set_lags(hand, [SignedDuration::ZERO; 3]);
        }
    }

    /// Takes one turn. Returns whether there was anything to do.
    pub(crate) fn step(&mut self, hand: usize, number: usize) -> bool {
        if std::mem::take(&mut self.world().changed) {
            self.all_work().for_each(|work| work.dirty = true);
        }
        let entered = self.runtime.enter();
        let moved = self.operators[hand].step(number);
        drop(entered);
        self.world().record_snapshot();
        moved
    }

    fn all_work(&mut self) -> impl Iterator<Item = &mut RolloutWork> {
        self.operators.iter_mut().flat_map(|hand| &mut hand.rollouts)
    }

    fn next_random(&mut self) -> usize {
        self.random_state ^= self.random_state << 13;
        self.random_state ^= self.random_state >> 7;
        self.random_state ^= self.random_state << 17;
        usize::try_from(self.random_state >> 8).unwrap_or_default()
    }

    pub(crate) fn run_for(&mut self, time: SignedDuration) {
        let end = self.world().now + time;
        while self.world().now < end {
            self.tick();
        }
    }

    /// Runs until this is true of a Rollout, for at most ten minutes of virtual time.
    #[track_caller]
    pub(crate) fn run_until(&mut self, name: &str, what: &str, is_so: impl Fn(&World) -> bool) {
        let end = self.world().now + SignedDuration::from_mins(10);
        while !self.world().with_rollout(name, |world| is_so(world)) {
            let in_time = self.world().now <= end;
            assert!(in_time, "not within ten minutes: {name}: {what}\n{}", self.log_text());
            self.tick();
        }
        self.check_violations();
    }

    /// Nothing that must never happen has happened.
    #[track_caller]
    pub(crate) fn check_violations(&self) {
        let broken = self.world().violations.clone();
        assert!(broken.is_empty(), "{broken:#?}\n{}", self.log_text());
    }
}

impl SimDriver for TwoRollouts {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    /// One tick of time, and turns in any order.
    fn tick(&mut self) {
        let mut world = self.world();
        world.tick();
        world.record_snapshot();
        drop(world);
        // What somebody hears of late is news when it is heard of.
        for hand in &mut self.operators {
            let late = hand.sim.stepping().is_some_and(|gait| gait.lags.iter().any(|lag| !lag.is_zero()));
            hand.rollouts.iter_mut().for_each(|work| work.dirty |= late);
        }
        let all = 2 * self.operators.len();
        for _ in 0..MAX_STEPS {
            let first = self.next_random();
            if !(0..all).any(|next| self.step((first + next) % all / 2, (first + next) % 2)) {
                return;
            }
        }
    }

    fn log_text(&self) -> String {
        Self::log_text(self)
    }
}
