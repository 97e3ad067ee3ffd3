//! Runs the operator in the world: reconciles when the work queue would, and lets virtual time pass in between.

use crate::{
    ports::Sim,
    world::{TICK, World},
};
use jiff::{SignedDuration, Timestamp};
use rollora_api::rollout::status::Phase;
use rollora_operator::{Operator, Requeue, ports::RolloutKey};

/// The operator, its world, and when it reconciles again.
pub(crate) struct SimRun {
    pub(crate) sim: Sim,
    operator: Operator<Sim, Sim, Sim>,
    runtime: tokio::runtime::Runtime,
    due: Option<Timestamp>,
}

impl SimRun {
    pub(crate) fn new(world: World) -> Self {
        let sim = Sim::new(world);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        Self { operator: new_operator(&sim), sim, runtime, due: None }
    }

    pub(crate) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.sim.world()
    }

    /// Runs one reconcile. A crash in it creates a new operator with empty caches.
    pub(crate) fn reconcile(&mut self) {
        let key = RolloutKey { namespace: None, name: self.world().rollout.metadata.name.clone() };
        let sim = self.sim.clone();
        let requeue = self.runtime.block_on(async {
            tokio::select! {
                biased;
                requeue = self.operator.reconcile(&key) => Some(requeue),
                () = sim.crash.notified() => None,
            }
        });
        let mut world = self.sim.world();
        let now = world.now;
        self.due = if let Some(requeue) = requeue {
            next_due(&requeue, now)
        } else {
            world.log_event("the operator crashed");
            self.operator = new_operator(&self.sim);
            Some(now)
        };
    }

    /// Advances time by one tick and runs the reconciles that become due.
    pub(crate) fn tick(&mut self) {
        self.world().tick();
        for _ in 0..20 {
            let mut world = self.world();
            let changed = std::mem::take(&mut world.changed);
            let now = world.now;
            drop(world);
            if !changed && self.due.is_none_or(|due| due > now) {
                return;
            }
            self.reconcile();
        }
    }

    pub(crate) fn run_for(&mut self, time: SignedDuration) {
        let end = self.world().now + time;
        while self.world().now < end {
            self.tick();
        }
    }

    /// Runs until the condition holds, for at most ten minutes of virtual time.
    #[track_caller]
    pub(crate) fn run_until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
        let end = self.world().now + SignedDuration::from_mins(10);
        while !condition(&self.world()) {
            let in_time = self.world().now <= end;
            assert!(in_time, "not within ten minutes: {what}\n{}", self.log_text());
            self.tick();
        }
        self.check_violations();
    }

    #[track_caller]
    pub(crate) fn run_until_phase(&mut self, phase: Phase) {
        self.run_until(&format!("{phase:?}"), |world| world.phase() == phase);
    }

    #[track_caller]
    pub(crate) fn run_until_weights(&mut self, weights: &[(&str, i32)]) {
        let weights: Vec<(String, i32)> = weights.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
        self.run_until(&format!("{weights:?}"), |world| world.weights() == weights);
    }

    /// Fails if an invariant was violated.
    #[track_caller]
    pub(crate) fn check_violations(&self) {
        let violations = self.world().violations.clone();
        assert!(violations.is_empty(), "{violations:#?}\n{}", self.log_text());
    }

    pub(crate) fn log_text(&self) -> String {
        self.sim.log.text()
    }
}

/// Returns when a key is reconciled again if nothing changes.
pub(crate) fn next_due(requeue: &Requeue, now: Timestamp) -> Option<Timestamp> {
    match requeue {
        Requeue::OnChange | Requeue::Forget => None,
        Requeue::After(delay) => Some(now + SignedDuration::try_from(*delay).unwrap()),
        Requeue::Now => Some(now),
        Requeue::Backoff(_) => Some(now + TICK),
    }
}

pub(crate) fn new_operator(sim: &Sim) -> Operator<Sim, Sim, Sim> {
    Operator::new(sim.clone(), sim.clone(), sim.clone())
}
