//! What is left to do when a Rollout is gone, or names another adapters file than it did: sidecars would wait for ever for
//! the admission of ids that it governed.

use crate::{
    Clock, Next, Operator, observe,
    ports::{Fleet, RolloutKey, Store},
};
use rollora_api::{rewrite::RewriteGroup, rollout::Rollout};
use rollora_plan::{Input, farewell, observed::Unseen};
use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

/// How soon at the latest it is tried again to leave a file.
const AGAIN: Duration = Duration::from_secs(5);

/// A Rollout as it was seen here.
#[derive(Debug)]
pub(crate) struct Seen {
    /// When it was last read.
    last: Arc<Rollout>,
    /// When it named another adapters file than it does now, once for each file that its entries have not left yet.
    former: Vec<Arc<Rollout>>,
}

impl<S: Store, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Remembers a Rollout for when it is gone, or names another file.
    pub(crate) fn remember(&self, key: &RolloutKey, rollout: &Arc<Rollout>) {
        let mut all = self.seen();
        let Some(seen) = all.get_mut(key) else {
            all.insert(key.clone(), Seen { last: Arc::clone(rollout), former: Vec::new() });
            return;
        };
        let before = mem::replace(&mut seen.last, Arc::clone(rollout));
        let is_named = |other: &Rollout| self.store.is_same_file(&other.spec.adapters_ref, &rollout.spec.adapters_ref);
        if !is_named(&before) {
            seen.former.push(before);
            seen.former.retain(|former| !is_named(former));
        }
    }

    /// Its entries leave the files that it named before. Not before those in the file that it names now are written: while
    /// that one is not there, what was good stays in force.
    pub(crate) async fn leave_former_files(&self, key: &RolloutKey, next: Next) -> Next {
        let former = self.seen().get(key).map(|seen| seen.former.clone()).unwrap_or_default();
        for rollout in former {
            if let Err(failed) = self.leave_file(key, &rollout).await {
                return sooner(next, failed);
            }
            if let Some(seen) = self.seen().get_mut(key) {
                seen.former.retain(|former| !Arc::ptr_eq(former, &rollout));
            }
        }
        next
    }

    /// The Rollout is gone. One that was never seen here leaves nothing that is known.
    pub(crate) async fn bid_farewell(&self, key: &RolloutKey) -> Next {
        let seen = self.seen().get(key).map(|seen| [seen.former.as_slice(), &[Arc::clone(&seen.last)]].concat());
        self.aftermath.settle(key);
        for rollout in seen.into_iter().flatten() {
            if let Err(next) = self.leave_file(key, &rollout).await {
                let Some(why) = self.aftermath.refused(key) else { return next };
                tracing::warn!(rollout = %key, "it is gone, and its entries stay in the operator's key: {why}");
            }
        }
        self.forget(key)
    }

    /// The entries of this Rollout leave the adapters file that it names here. One that is not there, or cannot be read, has
    /// none that anybody could take away.
    async fn leave_file(&self, key: &RolloutKey, rollout: &Rollout) -> Result<(), Next> {
        let (group, now) = (RewriteGroup::Current, self.clock.now());
        let look = observe::documents_only(&self.store, key, rollout, group, now).await;
        for unseen in [look.world.adapters.as_ref().err(), look.world.rollouts.as_ref().err()].into_iter().flatten() {
            if let Unseen::Unavailable(why) = unseen {
                let file = &rollout.spec.adapters_ref.name;
                return Err(Next::Retry(format!("its entries cannot leave the adapters file {file}: {why}")));
            }
        }
        let Some(effect) = farewell(&Input { rollout, world: &look.world }, now) else { return Ok(()) };
        self.apply(key, rollout, &look, &effect).await?;
        let file = &rollout.spec.adapters_ref.name;
        tracing::info!(rollout = %key, file, "its entries have left the operator's key");
        Ok(())
    }

    fn forget(&self, key: &RolloutKey) -> Next {
        self.seen().remove(key);
        self.memory.forget(key);
        self.aftermath.forget(key);
        Next::Forget
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, Seen>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to look again where a file could not be left: soon, and no later than for everything else.
fn sooner(next: Next, failed: Next) -> Next {
    match (next, failed) {
        (Next::After(delay), Next::Retry(why)) => {
            tracing::warn!("{why}");
            Next::After(delay.min(AGAIN))
        }
        (Next::OnChange | Next::After(_), failed) => failed,
        (next, _) => next,
    }
}
