//! Cleanup of the operator directives for Rollouts that were deleted or that now name another adapters file.
//!
//! Without it sidecars would wait permanently for the admission of ids that such a Rollout managed.

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

/// Maximum delay before the cleanup of a former file is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Versions of one Rollout whose entries may still be in an adapters file.
#[derive(Debug)]
pub(crate) struct KnownRollout {
    /// The version that was read last.
    current: Arc<Rollout>,
    /// For each other adapters file that still has entries of this Rollout, the last version that named it.
    former: Vec<Arc<Rollout>>,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Remembers a Rollout for the cleanup after its deletion or after a change of its adapters file.
    pub(crate) fn track_rollout(&self, key: &RolloutKey, rollout: &Arc<Rollout>) {
        let mut all = self.known_rollouts();
        let Some(known) = all.get_mut(key) else {
            all.insert(key.clone(), KnownRollout { current: Arc::clone(rollout), former: Vec::new() });
            return;
        };
        let before = mem::replace(&mut known.current, Arc::clone(rollout));
        let is_named =
            |other: &Rollout| self.store.is_same_adapters_file(&other.spec.adapters_ref, &rollout.spec.adapters_ref);
        if !is_named(&before) {
            known.former.push(before);
            known.former.retain(|former| !is_named(former));
        }
    }

    /// Removes the Rollout's entries from the adapters files that it named before.
    ///
    /// Must run only after its entries in the current file were written: while the current file does not exist, the
    /// last valid configuration stays active.
    pub(crate) async fn clear_former_files(&self, key: &RolloutKey, next: Requeue) -> Requeue {
        let former = self.known_rollouts().get(key).map(|known| known.former.clone()).unwrap_or_default();
        for rollout in former {
            if let Err(failed) = self.clear_file(key, &rollout).await {
                return earliest_requeue(next, failed);
            }
            if let Some(known) = self.known_rollouts().get_mut(key) {
                known.former.retain(|former| !Arc::ptr_eq(former, &rollout));
            }
        }
        next
    }

    /// Removes the entries of a deleted Rollout. Does nothing if this process never read the Rollout.
    pub(crate) async fn finalize_deleted(&self, key: &RolloutKey) -> Requeue {
        let known = self
            .known_rollouts()
            .get(key)
            .map(|known| [known.former.as_slice(), &[Arc::clone(&known.current)]].concat());
        self.last_writes.clear_refusal(key);
        for rollout in known.into_iter().flatten() {
            if let Err(next) = self.clear_file(key, &rollout).await {
                let Some(why) = self.last_writes.refusal(key) else { return next };
                tracing::warn!(rollout = %key, "the entries of the deleted Rollout were not removed: {why}");
            }
        }
        self.forget_rollout(key)
    }

    /// Removes the Rollout's entries from the adapters file that `rollout` names. Succeeds if that file does not exist
    /// or cannot be parsed, because no entry can be removed from it.
    async fn clear_file(&self, key: &RolloutKey, rollout: &Rollout) -> Result<(), Requeue> {
        let (group, now) = (RewriteGroup::Current, self.clock.now());
        let observation = observe::observe_documents(&self.store, key, rollout, group, now).await;
        let (adapters, rollouts) = (&observation.observed.adapters, &observation.observed.rollouts);
        for error in [adapters.as_ref().err(), rollouts.as_ref().err()].into_iter().flatten() {
            if let ObserveError::Unavailable(why) = error {
                let file = &rollout.spec.adapters_ref.name;
                return Err(Requeue::Backoff(format!(
                    "the entries of the Rollout cannot be removed from the operator directives of {file}: {why}"
                )));
            }
        }
        let Some(effect) = finalize_deleted(&DecisionInput { rollout, observed: &observation.observed }, now) else {
            return Ok(());
        };
        self.apply_effect(key, rollout, &observation, &effect).await?;
        let file = &rollout.spec.adapters_ref.name;
        tracing::info!(rollout = %key, file, "removed the entries of the Rollout from the operator directives");
        Ok(())
    }

    fn forget_rollout(&self, key: &RolloutKey) -> Requeue {
        self.known_rollouts().remove(key);
        self.observe_cache.forget(key);
        self.last_writes.forget(key);
        Requeue::Forget
    }

    fn known_rollouts(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, KnownRollout>> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.known_rollouts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Combines the result of a reconcile with a failed cleanup: retried soon, and no later than the reconcile itself.
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
