//! The two Rollouts of a world, and one operator that works on both, or two of them at once. Reconciles are moved call by
//! call in any order, as they run at once where many Rollouts are.

use crate::{
    driver::{due, operator},
    ports::{Gait, Sim},
    schedules::Drive,
    world::World,
};
use futures_util::task::noop_waker_ref;
use jiff::{SignedDuration, Timestamp};
use rollora_operator::{Next, Operator, ports::RolloutKey};
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
const MOVES: usize = 200;

/// One Rollout, as an operator works on it.
struct Work {
    key: RolloutKey,
    reconcile: Option<Pin<Box<dyn Future<Output = Next>>>>,
    woken: bool,
    due: Option<Timestamp>,
}

impl Work {
    fn on(name: &str) -> Self {
        let key = RolloutKey { namespace: None, name: name.to_owned() };
        Self { key, reconcile: None, woken: true, due: None }
    }
}

/// One of the operators.
struct Hand {
    sim: Sim,
    operator: Rc<Operator<Sim, Sim, Sim>>,
    works: [Work; 2],
    /// It stands still, wherever it is.
    stopped: bool,
}

impl Hand {
    fn new(sim: Sim) -> Self {
        Self { operator: Rc::new(operator(&sim)), sim, works: NAMES.map(Work::on), stopped: false }
    }

    /// Moves the reconcile of one Rollout by one turn. Returns whether there was anything to do.
    fn move_on(&mut self, number: usize) -> bool {
        let (now, work) = (self.sim.world().now, &mut self.works[number]);
        if self.stopped || (work.reconcile.is_none() && !work.woken && work.due.is_none_or(|due| due > now)) {
            return false;
        }
        let reconcile = work.reconcile.get_or_insert_with(|| {
            (work.woken, work.due) = (false, None);
            let (operator, key) = (Rc::clone(&self.operator), work.key.clone());
            Box::pin(async move { operator.reconcile(&key).await })
        });
        let mut context = Context::from_waker(noop_waker_ref());
        let polled = reconcile.as_mut().poll(&mut context);
        let crashed = pin!(self.sim.crash.notified()).poll(&mut context).is_ready();
        if let Poll::Ready(next) = polled {
            (work.reconcile, work.due) = (None, due(&next, now));
        }
        if crashed {
            self.sim.world().note("an operator crashed");
            *self = Self::new(self.sim.clone());
        }
        true
    }
}

pub(crate) struct Pair {
    sim: Sim,
    hands: Vec<Hand>,
    runtime: tokio::runtime::Runtime,
    /// Whose turn it is.
    random: u64,
}

impl Pair {
    /// So many operators in this world.
    pub(crate) fn new(mut world: World, operators: u64, seed: u64) -> Self {
        world.past = Some(Vec::new());
        world.record();
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let gait = |number: u64| Gait { seed: seed.wrapping_add(number), ..Gait::default() };
        let hands = (0..operators).map(|number| Hand::new(sim.beside(gait(number)))).collect();
        Self { hands, sim, runtime, random: seed | 1 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.sim.world()
    }

    pub(crate) fn story(&self) -> String {
        self.sim.log.told()
    }

    /// It stops where it is, or goes on.
    pub(crate) fn stop(&mut self, hand: usize) {
        self.hands[hand].stopped ^= true;
    }

    /// It dies wherever it is, and another one takes its place.
    pub(crate) fn kill(&mut self, hand: usize) {
        self.hands[hand] = Hand::new(self.hands[hand].sim.clone());
    }

    /// It hears of documents so late.
    pub(crate) fn lag(&mut self, hand: usize, lags: [SignedDuration; 3]) {
        if let Some(mut gait) = self.hands[hand].sim.gait() {
            gait.lags = lags;
        }
    }

    /// All operators go on, and hear of everything at once.
    pub(crate) fn go_on(&mut self) {
        for hand in 0..self.hands.len() {
            self.hands[hand].stopped = false;
            self.lag(hand, [SignedDuration::ZERO; 3]);
        }
    }

    /// Takes one turn. Returns whether there was anything to do.
    pub(crate) fn move_on(&mut self, hand: usize, number: usize) -> bool {
        if std::mem::take(&mut self.world().changed) {
            self.works().for_each(|work| work.woken = true);
        }
        let entered = self.runtime.enter();
        let moved = self.hands[hand].move_on(number);
        drop(entered);
        self.world().record();
        moved
    }

    fn works(&mut self) -> impl Iterator<Item = &mut Work> {
        self.hands.iter_mut().flat_map(|hand| &mut hand.works)
    }

    fn chance(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 8).unwrap_or_default()
    }

    pub(crate) fn run_for(&mut self, time: SignedDuration) {
        let end = self.world().now + time;
        while self.world().now < end {
            self.tick();
        }
    }

    /// Runs until this is true of a Rollout, for at most ten minutes of virtual time.
    #[track_caller]
    pub(crate) fn until(&mut self, name: &str, what: &str, is_so: impl Fn(&World) -> bool) {
        let end = self.world().now + SignedDuration::from_mins(10);
        while !self.world().of(name, |world| is_so(world)) {
            let in_time = self.world().now <= end;
            assert!(in_time, "not within ten minutes: {name}: {what}\n{}", self.story());
            self.tick();
        }
        self.check();
    }

    /// Nothing that must never happen has happened.
    #[track_caller]
    pub(crate) fn check(&self) {
        let broken = self.world().broken.clone();
        assert!(broken.is_empty(), "{broken:#?}\n{}", self.story());
    }
}

impl Drive for Pair {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    /// One tick of time, and turns in any order.
    fn tick(&mut self) {
        let mut world = self.world();
        world.tick();
        world.record();
        drop(world);
        // What somebody hears of late is news when it is heard of.
        for hand in &mut self.hands {
            let late = hand.sim.gait().is_some_and(|gait| gait.lags.iter().any(|lag| !lag.is_zero()));
            hand.works.iter_mut().for_each(|work| work.woken |= late);
        }
        let all = 2 * self.hands.len();
        for _ in 0..MOVES {
            let first = self.chance();
            if !(0..all).any(|next| self.move_on((first + next) % all / 2, (first + next) % 2)) {
                return;
            }
        }
    }

    fn story(&self) -> String {
        Self::story(self)
    }
}
