//! The reconcile loop: reads the state of a Rollout through two ports, lets `rollora-plan` decide, applies the result.
//!
//! A reconcile is a pipeline: observe, decide, persist the status, apply the effects in order until one fails, report.
//! All decisions are made by [`rollora_plan`]; all inputs come through [`ports`]. This crate
//! contains no Kubernetes client and no rollout logic.
//!
//! Invariants:
//! - The status is written before the effects; each write carries the version that was read.
//! - At most one reconcile per key runs at a time. A reconcile that waits for servers or routers is abandoned when a
//!   new intent arrives.
//! - Every call of a port has a timeout.

#![warn(missing_docs)]

mod backoff;
mod finalize;
mod last_writes;
mod observe;
mod reconcile;
mod work_queue;

pub mod ports;
pub mod stats;

pub use reconcile::Requeue;
pub use stats::ReconcileStats;

use crate::{
    backoff::RequeueBackoff,
    finalize::KnownRollout,
    last_writes::LastWriteResults,
    observe::ObserveCache,
    work_queue::{Priority, WorkQueue},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use ports::{DocumentStore, Fleet, RolloutKey};
use rollora_api::rewrite::RewriteGroup;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Number of reconciles that may run concurrently.
const MAX_CONCURRENT_RECONCILES: usize = 64;
/// Number of additional reconciles that may run while a key with a pending intent is due.
const EXTRA_FOR_INTENTS: usize = 64;

/// Source of the current time, so that tests control it.
pub trait Clock: Send + Sync {
    /// Returns the current wall-clock time.
    fn now(&self) -> Timestamp;
}

impl<F: Fn() -> Timestamp + Send + Sync> Clock for F {
    fn now(&self) -> Timestamp {
        self()
    }
}

/// Reason why the operator ended without being canceled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// The stream of changes ended, so every later decision would use outdated objects.
    #[error("the stream of Rollout changes ended; restart the operator, it cannot decide on outdated objects")]
    ChangesEnded,
}

/// Reconciler of all Rollouts, generic over its two ports and the clock.
#[derive(Debug)]
pub struct Operator<S, F, C> {
    store: S,
    fleet: F,
    clock: C,
    new_rewrite_group: RewriteGroup,
    observe_cache: ObserveCache,
    last_writes: LastWriteResults,
    /// The spec of every Rollout as last read, for the cleanup after its deletion.
    known_rollouts: Mutex<BTreeMap<RolloutKey, KnownRollout>>,
    stats: Arc<ReconcileStats>,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Returns an operator with empty caches that creates rewrites in the current API group.
    pub fn new(store: S, fleet: F, clock: C) -> Self {
        let new_rewrite_group = RewriteGroup::Current;
        let (observe_cache, last_writes, known_rollouts) =
            (ObserveCache::default(), LastWriteResults::default(), Mutex::default());
        Self {
            store,
            fleet,
            clock,
            new_rewrite_group,
            observe_cache,
            last_writes,
            known_rollouts,
            stats: Arc::default(),
        }
    }

    /// Sets the API group of the rewrites that the operator creates.
    #[must_use]
    pub fn with_rewrite_group(self, new_rewrite_group: RewriteGroup) -> Self {
        Self { new_rewrite_group, ..self }
    }

    /// Returns the counters and duration histograms of this operator.
    pub fn stats(&self) -> &Arc<ReconcileStats> {
        &self.stats
    }

    /// Reconciles changed Rollouts until `cancel` fires, then waits for the running reconciles to finish.
    ///
    /// # Errors
    /// [`OperatorError::ChangesEnded`] if the store stops delivering changes.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), OperatorError> {
        let mut changes = std::pin::pin!(self.store.changes());
        let mut queue = WorkQueue::default();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < max_concurrent(&queue)
                && let Some((key, last_event, wake)) = queue.pop_due(Instant::now())
            {
                running.push(async move {
                    let requeue_when = self.reconcile_interruptible(&key, last_event, &wake).await;
                    (key, requeue_when)
                });
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                change = changes.next() => match change {
                    Some(key) => {
                        let is_interactive = self.store.has_pending_intent(&key);
                        let priority = if is_interactive { Priority::Interactive } else { Priority::Normal };
                        queue.enqueue(&key, priority, Instant::now());
                    }
                    None => return Err(OperatorError::ChangesEnded),
                },
                Some((key, requeue_when)) = running.next() => {
                    self.stats.record_reconcile(&key, matches!(requeue_when, Requeue::Backoff(_)));
                    if requeue_when == Requeue::Forget {
                        self.stats.forget(&key);
                    }
                    requeue(&mut queue, &key, &requeue_when);
                }
                () = queue.wait_until_due(), if running.len() < MAX_CONCURRENT_RECONCILES => {}
            }
        }
        while running.next().await.is_some() {}
        Ok(())
    }
}

/// Returns the current limit of concurrent reconciles.
fn max_concurrent(queue: &WorkQueue) -> usize {
    if queue.has_interactive() { MAX_CONCURRENT_RECONCILES + EXTRA_FOR_INTENTS } else { MAX_CONCURRENT_RECONCILES }
}

/// Puts a key back into the queue according to the result of its reconcile.
fn requeue(queue: &mut WorkQueue, key: &RolloutKey, requeue_when: &Requeue) {
    let now = Instant::now();
    match requeue_when {
        Requeue::OnChange => queue.requeue_at(key, None),
        Requeue::After(delay) => queue.requeue_at(key, Some(now + *delay)),
        Requeue::Now => queue.requeue_at(key, Some(now)),
        Requeue::Backoff(why) => {
            let delay = queue.requeue_with_backoff(key, RequeueBackoff::default(), now);
            tracing::warn!(rollout = %key, retry_in = ?delay, "reconcile failed: {why}");
        }
        Requeue::Forget => queue.forget(key),
    }
}

/// Timeout of one read through a port.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of one write through a port.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
