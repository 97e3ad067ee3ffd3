//! What is left to do when a Rollout is gone, or names another adapters file than it did: sidecars would wait for ever for
//! the admission of ids that it governed.

use crate::{
    Clock, Operator, Requeue, observe,
    ports::{DocumentStore, Fleet, RolloutKey},
};
use rollora_api::{rewrite::RewriteGroup, rollout::Rollout};
use rollora_plan::{DecisionInput, finalize_deleted, observed::ObserveError};
use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

/// How soon at the latest it is tried again to leave a file.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A Rollout as it was seen here.
#[derive(Debug)]
pub(crate) struct KnownRollout {
    /// When it was last read.
    current: Arc<Rollout>,
    /// When it named another adapters file than it does now, once for each file that its entries have not left yet.
    former: Vec<Arc<Rollout>>,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Remembers a Rollout for when it is gone, or names another file.
    pub(crate) fn track_rollout(&self, key: &RolloutKey, rollout: &Arc<Rollout>) {
        let mut all = self.known_rollouts();
        let Some(seen) = all.get_mut(key) else {
            all.insert(key.clone(), KnownRollout { current: Arc::clone(rollout), former: Vec::new() });
            return;
        };
        let before = mem::replace(&mut seen.current, Arc::clone(rollout));
        let is_named =
            |other: &Rollout| self.store.is_same_adapters_file(&other.spec.adapters_ref, &rollout.spec.adapters_ref);
        if !is_named(&before) {
            seen.former.push(before);
            seen.former.retain(|former| !is_named(former));
        }
    }

    /// Its entries leave the files that it named before. Not before those in the file that it names now are written: while
    /// that one is not there, what was good stays in force.
    pub(crate) async fn clear_former_files(&self, key: &RolloutKey, next: Requeue) -> Requeue {
        let former = self.known_rollouts().get(key).map(|seen| seen.former.clone()).unwrap_or_default();
        for rollout in former {
            if let Err(failed) = self.clear_file(key, &rollout).await {
                return earliest_requeue(next, failed);
            }
            if let Some(seen) = self.known_rollouts().get_mut(key) {
                seen.former.retain(|former| !Arc::ptr_eq(former, &rollout));
            }
        }
        next
    }

    /// The Rollout is gone. One that was never seen here leaves nothing that is known.
    pub(crate) async fn finalize_deleted(&self, key: &RolloutKey) -> Requeue {
        let seen =
            self.known_rollouts().get(key).map(|seen| [seen.former.as_slice(), &[Arc::clone(&seen.current)]].concat());
        self.last_writes.clear_refusal(key);
        for rollout in seen.into_iter().flatten() {
            if let Err(next) = self.clear_file(key, &rollout).await {
                let Some(why) = self.last_writes.refusal(key) else { return next };
                tracing::warn!(rollout = %key, "it is gone, and its entries stay in the operator's key: {why}");
            }
        }
        self.forget_rollout(key)
    }

    /// The entries of this Rollout leave the adapters file that it names here. One that is not there, or cannot be read, has
    /// none that anybody could take away.
    async fn clear_file(&self, key: &RolloutKey, rollout: &Rollout) -> Result<(), Requeue> {
        let (group, now) = (RewriteGroup::Current, self.clock.now());
        let look = observe::observe_documents(&self.store, key, rollout, group, now).await;
        for unseen in
            [look.observed.adapters.as_ref().err(), look.observed.rollouts.as_ref().err()].into_iter().flatten()
        {
            if let ObserveError::Unavailable(why) = unseen {
                let file = &rollout.spec.adapters_ref.name;
                return Err(Requeue::Backoff(format!("its entries cannot leave the adapters file {file}: {why}")));
            }
        }
        let Some(effect) = finalize_deleted(&DecisionInput { rollout, observed: &look.observed }, now) else {
            return Ok(());
        };
        self.apply_effect(key, rollout, &look, &effect).await?;
        let file = &rollout.spec.adapters_ref.name;
        tracing::info!(rollout = %key, file, "its entries have left the operator's key");
        Ok(())
    }

    fn forget_rollout(&self, key: &RolloutKey) -> Requeue {
        self.known_rollouts().remove(key);
        self.observe_cache.forget(key);
        self.last_writes.forget(key);
        Requeue::Forget
    }

    fn known_rollouts(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, KnownRollout>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.known_rollouts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to look again where a file could not be left: soon, and no later than for everything else.
fn earliest_requeue(next: Requeue, failed: Requeue) -> Requeue {
    match (next, failed) {
        (Requeue::After(delay), Requeue::Backoff(why)) => {
            tracing::warn!("{why}");
            Requeue::After(delay.min(RETRY_INTERVAL))
        }
        (Requeue::OnChange | Requeue::After(_), failed) => failed,
        (next, _) => next,
    }
}
