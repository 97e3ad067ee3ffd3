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

mod aftermath;
mod backoff;
mod farewell;
mod observe;
mod queue;
mod reconcile;

pub mod ports;
pub mod tally;

pub use reconcile::Next;
pub use tally::Tally;

use crate::{
    aftermath::Aftermath,
    backoff::Backoff,
    farewell::Seen,
    observe::Memory,
    queue::{Queue, Turn},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use ports::{Fleet, RolloutKey, Store};
use rollora_api::rewrite::RewriteGroup;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Reconciles that run at once.
const CONCURRENCY: usize = 64;
/// So many more where a person waits for them.
const WISHES: usize = 64;

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
    memory: Memory,
    aftermath: Aftermath,
    /// Every Rollout, for what is left to do when it is gone.
    seen: Mutex<BTreeMap<RolloutKey, Seen>>,
    tally: Arc<Tally>,
}

impl<S: Store, F: Fleet, C: Clock> Operator<S, F, C> {
    /// An operator that has not looked at anything yet. Rewrites that have to be made are of the current group.
    pub fn new(store: S, fleet: F, clock: C) -> Self {
        let new_rewrite_group = RewriteGroup::Current;
        let (memory, aftermath, seen) = (Memory::default(), Aftermath::default(), Mutex::default());
        Self { store, fleet, clock, new_rewrite_group, memory, aftermath, seen, tally: Arc::default() }
    }

    /// The group of rewrites that have to be made.
    #[must_use]
    pub fn with_rewrite_group(self, new_rewrite_group: RewriteGroup) -> Self {
        Self { new_rewrite_group, ..self }
    }

    /// What was done so far.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Reconciles what changes until it is cancelled; what is under way then is finished.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), OperatorError> {
        let mut changes = std::pin::pin!(self.store.changes());
        let mut queue = Queue::default();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < at_once(&queue)
                && let Some((key, news, wake)) = queue.take_due(Instant::now())
            {
                running.push(async move {
                    let next = self.reconcile_unless_woken(&key, news, &wake).await;
                    (key, next)
                });
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                change = changes.next() => match change {
                    Some(key) => {
                        let turn = if self.store.has_wish(&key) { Turn::Wish } else { Turn::Ordinary };
                        queue.wake(&key, turn, Instant::now());
                    }
                    None => return Err(OperatorError::ChangesEnded),
                },
                Some((key, next)) = running.next() => {
                    self.tally.reconciled(&key, matches!(next, Next::Retry(_)));
                    if next == Next::Forget {
                        self.tally.forget(&key);
                    }
                    finish(&mut queue, &key, &next);
                }
                () = queue.until_due(), if running.len() < CONCURRENCY => {}
            }
        }
        while running.next().await.is_some() {}
        Ok(())
    }
}

/// How many reconciles may run at once now.
fn at_once(queue: &Queue) -> usize {
    if queue.has_wish() { CONCURRENCY + WISHES } else { CONCURRENCY }
}

/// Puts a key back into the queue as its reconcile ended.
fn finish(queue: &mut Queue, key: &RolloutKey, next: &Next) {
    let now = Instant::now();
    match next {
        Next::OnChange => queue.rest(key, None),
        Next::After(delay) => queue.rest(key, Some(now + *delay)),
        Next::Again => queue.rest(key, Some(now)),
        Next::Retry(why) => {
            let delay = queue.fail(key, Backoff::default(), now);
            tracing::warn!(rollout = %key, again_in = ?delay, "{why}");
        }
        Next::Forget => queue.forget(key),
    }
}

/// The time limit of one read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// The time limit of one write.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
