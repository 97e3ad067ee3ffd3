//! The two Rollouts of a world, with one or two operators that reconcile both. Reconciles are stepped call by call in
//! any order, as they interleave when many Rollouts exist.

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

/// Names of the Rollouts, which are also their model names.
pub(crate) const NAMES: [&str; 2] = ["small", "large"];

/// Maximum number of steps per tick: more than those of a few reconciles of each Rollout.
const MAX_STEPS: usize = 200;

/// Work of an operator on one Rollout.
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

struct PairOperator {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    rollouts: [RolloutWork; 2],
    /// Whether it makes no progress, wherever it is.
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

    /// Polls the reconcile of one Rollout once. Returns whether there was anything to do.
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
        let poll = reconcile.as_mut().poll(&mut context);
        let crashed = pin!(self.sim.crash.notified()).poll(&mut context).is_ready();
        if let Poll::Ready(requeue) = poll {
            (work.reconcile, work.due) = (None, next_due(&requeue, now));
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
    /// State of the random choice of the next step.
    random_state: u64,
}

impl TwoRollouts {
    /// Creates this number of operators in a world.
    pub(crate) fn new(mut world: World, operators: u64, seed: u64) -> Self {
        world.history = Some(Vec::new());
        world.record_snapshot();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let stepping = |number: u64| Stepping { seed: seed.wrapping_add(number), ..Stepping::default() };
        let operators = (0..operators).map(|number| PairOperator::new(sim.with_stepping(stepping(number)))).collect();
        Self { operators, sim, runtime, random_state: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn log_text(&self) -> String {
        self.sim.log.text()
    }

    /// Stops an operator where it is, or resumes it.
    pub(crate) fn toggle_stopped(&mut self, operator: usize) {
        self.operators[operator].stopped ^= true;
    }

    /// Kills an operator in the middle of anything, and starts another one in its place.
    pub(crate) fn restart_operator(&mut self, operator: usize) {
        self.operators[operator] = PairOperator::new(self.operators[operator].sim.clone());
    }

    /// Sets the lags with which an operator reads documents.
    pub(crate) fn set_lags(&mut self, operator: usize, lags: [SignedDuration; 3]) {
        if let Some(mut stepping) = self.operators[operator].sim.stepping() {
            stepping.lags = lags;
        }
    }

    /// Resumes all operators, without lags.
    pub(crate) fn resume_all(&mut self) {
        for operator in 0..self.operators.len() {
            self.operators[operator].stopped = false;
            self.set_lags(operator, [SignedDuration::ZERO; 3]);
        }
    }

    /// Takes one step. Returns whether there was anything to do.
    pub(crate) fn step(&mut self, operator: usize, number: usize) -> bool {
        if std::mem::take(&mut self.world().changed) {
            self.all_work().for_each(|work| work.dirty = true);
        }
        let guard = self.runtime.enter();
        let progressed = self.operators[operator].step(number);
        drop(guard);
        self.world().record_snapshot();
        progressed
    }

    fn all_work(&mut self) -> impl Iterator<Item = &mut RolloutWork> {
        self.operators.iter_mut().flat_map(|operator| &mut operator.rollouts)
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

    /// Runs until the condition holds for a Rollout, for at most ten minutes of virtual time.
    #[track_caller]
    pub(crate) fn run_until(&mut self, name: &str, what: &str, condition: impl Fn(&World) -> bool) {
        let end = self.world().now + SignedDuration::from_mins(10);
        while !self.world().with_rollout(name, |world| condition(world)) {
            let in_time = self.world().now <= end;
            assert!(in_time, "not within ten minutes: {name}: {what}\n{}", self.log_text());
            self.tick();
        }
        self.check_violations();
    }

    /// Fails if an invariant was violated.
    #[track_caller]
    pub(crate) fn check_violations(&self) {
        let violations = self.world().violations.clone();
        assert!(violations.is_empty(), "{violations:#?}\n{}", self.log_text());
    }
}

impl SimDriver for TwoRollouts {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    /// Advances time by one tick, and takes steps in random order until all are idle.
    fn tick(&mut self) {
        let mut world = self.world();
        world.tick();
        world.record_snapshot();
        drop(world);
        // A lagging operator must reconcile again when it can read a change.
        for operator in &mut self.operators {
            let lagging =
                operator.sim.stepping().is_some_and(|stepping| stepping.lags.iter().any(|lag| !lag.is_zero()));
            operator.rollouts.iter_mut().for_each(|work| work.dirty |= lagging);
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
