//! What is left to do when a Rollout is gone: sidecars would wait for ever for the admission of ids that it governed.

use crate::{
    Clock, Next, Operator, observe,
    ports::{Fleet, RolloutKey, Store},
};
use rollora_api::{rewrite::RewriteGroup, rollout::Rollout};
use rollora_plan::{Input, farewell, observed::Unseen};
use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
};

impl<S: Store, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Remembers a Rollout for when it is gone.
    pub(crate) fn remember(&self, key: &RolloutKey, rollout: &Arc<Rollout>) {
        self.last().insert(key.clone(), Arc::clone(rollout));
    }

    /// The Rollout is gone. One that was never seen here leaves nothing that is known.
    pub(crate) async fn bid_farewell(&self, key: &RolloutKey) -> Next {
        let Some(rollout) = self.last().get(key).cloned() else { return self.forget(key) };
        let (group, now) = (RewriteGroup::Current, self.clock.now());
        let look = observe::documents_only(&self.store, &self.memory, key, &rollout, group, now).await;
        for unseen in [look.world.adapters.as_ref().err(), look.world.rollouts.as_ref().err()].into_iter().flatten() {
            if let Unseen::Unavailable(why) = unseen {
                return Next::Retry(format!("it is gone, and its entries cannot leave the adapters file: {why}"));
            }
        }
        let effect = farewell(&Input { rollout: &rollout, world: &look.world }, now);
        if let Some(effect) = effect {
            let ended = self.apply(key, &rollout, &look, &effect).await;
            let refused = self.refused(key).is_some();
            match ended {
                Err(next) if !refused => return next,
                Err(_) => {
                    let why = self.refused(key).unwrap_or_default();
                    tracing::warn!(rollout = %key, "its entries stay in the operator's key: {why}");
                }
                Ok(()) => tracing::info!(rollout = %key, "it is gone, and its entries have left the operator's key"),
            }
        }
        self.forget(key)
    }

    fn forget(&self, key: &RolloutKey) -> Next {
        self.last().remove(key);
        self.memory.forget(key);
        self.set_refused(key, None);
        Next::Forget
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<RolloutKey, Arc<Rollout>>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
