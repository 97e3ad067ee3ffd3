//! Asks two ports what is, the plan what to do, and tells the ports.
//!
//! A reconcile reads like a pipeline: observe, decide, write the status, do the effects in order up to the first that
//! is not done, tell people. All that is decided is decided by [`rollora_plan`]; all that is known of the world comes
//! through [`ports`].
//!
//! Invariants:
//! - The status is written before the effects, each write with the version that was read.
//! - One reconcile for a key at a time. One that waits for servers or routers gives way to what a person asks for.
//! - Every call of a port has a time limit.

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

/// Reconciles that run at once.
const MAX_CONCURRENT_RECONCILES: usize = 64;
/// So many more where a person waits for them.
const EXTRA_FOR_INTENTS: usize = 64;

/// What time it is.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

impl<F: Fn() -> Timestamp + Send + Sync> Clock for F {
    fn now(&self) -> Timestamp {
        self()
    }
}

/// Why an operator ended although nobody told it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// Nobody says any more what changes.
    #[error("the store tells no more changes: the operator would decide on old knowledge, so it ends")]
    ChangesEnded,
}

/// The operator over its two ports.
#[derive(Debug)]
pub struct Operator<S, F, C> {
    store: S,
    fleet: F,
    clock: C,
    new_rewrite_group: RewriteGroup,
    observe_cache: ObserveCache,
    last_writes: LastWriteResults,
    /// Every Rollout, for what is left to do when it is gone.
    known_rollouts: Mutex<BTreeMap<RolloutKey, KnownRollout>>,
    stats: Arc<ReconcileStats>,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// An operator that has not looked at anything yet. Rewrites that have to be made are of the current group.
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

    /// The group of rewrites that have to be made.
    #[must_use]
    pub fn with_rewrite_group(self, new_rewrite_group: RewriteGroup) -> Self {
        Self { new_rewrite_group, ..self }
    }

    /// What was done so far.
    pub fn stats(&self) -> &Arc<ReconcileStats> {
        &self.stats
    }

    /// Reconciles what changes until it is cancelled; what is under way then is finished.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), OperatorError> {
        let mut changes = std::pin::pin!(self.store.changes());
        let mut queue = WorkQueue::default();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < max_concurrent(&queue)
                && let Some((key, news, wake)) = queue.pop_due(Instant::now())
            {
                running.push(async move {
                    let next = self.reconcile_interruptible(&key, news, &wake).await;
                    (key, next)
                });
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                change = changes.next() => match change {
                    Some(key) => {
                        let turn = if self.store.has_pending_intent(&key) { Priority::Interactive } else { Priority::Normal };
                        queue.enqueue(&key, turn, Instant::now());
                    }
                    None => return Err(OperatorError::ChangesEnded),
                },
                Some((key, next)) = running.next() => {
                    self.stats.record_reconcile(&key, matches!(next, Requeue::Backoff(_)));
                    if next == Requeue::Forget {
                        self.stats.forget(&key);
                    }
                    requeue(&mut queue, &key, &next);
                }
                () = queue.wait_until_due(), if running.len() < MAX_CONCURRENT_RECONCILES => {}
            }
        }
        while running.next().await.is_some() {}
        Ok(())
    }
}

/// How many reconciles may run at once now.
fn max_concurrent(queue: &WorkQueue) -> usize {
    if queue.has_interactive() { MAX_CONCURRENT_RECONCILES + EXTRA_FOR_INTENTS } else { MAX_CONCURRENT_RECONCILES }
}

/// Puts a key back into the queue as its reconcile ended.
fn requeue(queue: &mut WorkQueue, key: &RolloutKey, next: &Requeue) {
    let now = Instant::now();
    match next {
        Requeue::OnChange => queue.requeue_at(key, None),
        Requeue::After(delay) => queue.requeue_at(key, Some(now + *delay)),
        Requeue::Now => queue.requeue_at(key, Some(now)),
        Requeue::Backoff(why) => {
            let delay = queue.requeue_with_backoff(key, RequeueBackoff::default(), now);
            tracing::warn!(rollout = %key, again_in = ?delay, "{why}");
        }
        Requeue::Forget => queue.forget(key),
    }
}

/// The time limit of one read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of one write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
