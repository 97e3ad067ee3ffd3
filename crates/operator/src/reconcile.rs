//! One reconcile of one Rollout: observe, decide, persist the status, apply the effects, report.

use crate::{
    Clock, Operator, WRITE_TIMEOUT,
    observe::{self, Observation},
    ports::{
        AdaptersWrite, DocumentStore, Fleet, Precondition, ResourceVersion, RolloutEvent, RolloutKey, Versioned,
        WriteOutcome,
    },
    stats,
};
use rollora_api::{
    condition::reason,
    rewrite::RewriteGroup,
    rollout::{Intent, Rollout},
};
use rollora_plan::{Decision, DecisionInput, decide, effect::Effect, has_pending_abort, observed::ObserveError};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// When a key is reconciled again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requeue {
    /// When the Rollout or a related object changes.
    OnChange,
    /// After this time, or earlier if something changes.
    After(Duration),
    /// Immediately, because an input changed meanwhile or more remains to be done.
    Now,
    /// After a delay that grows with each failure, for the given reason.
    Backoff(String),
    /// Never, because the Rollout is gone.
    Forget,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Reconciles one Rollout once and returns when it must be reconciled again.
    pub async fn reconcile(&self, key: &RolloutKey) -> Requeue {
        self.reconcile_interruptible(key, Instant::now(), &Notify::new()).await
    }

    /// Reconciles one Rollout that changed last at `last_event`. A `wake` during the observation makes the reconcile
    /// check for a new intent, which ends it early.
    pub(crate) async fn reconcile_interruptible(
        &self,
        key: &RolloutKey,
        last_event: Instant,
        wake: &Notify,
    ) -> Requeue {
        let rollout = match self.read_rollout(key).await {
            Ok(Some(rollout)) => rollout,
            Ok(None) => return self.finalize_deleted(key).await,
            Err(error) => return Requeue::Backoff(format!("the Rollout cannot be read: {error}")),
        };
        let started_at = Instant::now();
        self.track_rollout(key, &rollout.value);
        let Some(observation) = self.observe(key, &rollout.value, wake).await else { return Requeue::Now };
        let decision = self.decide(key, &rollout.value, &observation, started_at);
        let requeue = match self.execute(key, &rollout, &observation, &decision).await {
            Ok(()) if has_pending_abort(&rollout.value) => Requeue::Now,
            Ok(()) => {
                let next = requeue_after(decision.requeue_after, observation.stale_until(last_event));
                let has_adapters = observation.adapters_version.is_some();
                if has_adapters { self.clear_former_files(key, next).await } else { next }
            }
            Err(requeue) => requeue,
        };
        tracing::debug!(rollout = %key, ?requeue, phase = ?decision.status.phase, "reconciled");
        requeue
    }

    async fn read_rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ObserveError> {
        observe::with_read_timeout(self.store.rollout(key)).await
    }

    /// Reads the inputs of the decision; only the rewrites if an abort is pending, so that it waits for nothing else.
    /// Returns `None` if a new intent arrived meanwhile.
    async fn observe(&self, key: &RolloutKey, rollout: &Rollout, wake: &Notify) -> Option<Observation> {
        let mut observation = if has_pending_abort(rollout) {
            observe::observe_rewrites(&self.store, key, self.rewrite_group(rollout)).await
        } else {
            self.observe_all(key, rollout, wake).await?
        };
        (observation.observed.write_refusal, observation.observed.overwritten_sequence) =
            (self.last_writes.refusal(key), self.last_writes.take_sequence(key));
        Some(observation)
    }

    /// Reads everything from both ports. Returns `None` if a new intent arrived meanwhile.
    async fn observe_all(&self, key: &RolloutKey, rollout: &Rollout, wake: &Notify) -> Option<Observation> {
        let ports = (&self.store, &self.fleet);
        let (group, now, initial_intent) = (self.rewrite_group(rollout), self.clock.now(), pending_intent(rollout));
        let mut reads = std::pin::pin!(observe::observe_all(ports, &self.observe_cache, key, rollout, group, now));
        loop {
            tokio::select! {
                biased;
                observation = &mut reads => return Some(observation),
                () = wake.notified() => {
                    let rollout = self.read_rollout(key).await.ok().flatten();
                    let intent = rollout.and_then(|rollout| pending_intent(&rollout.value));
                    if intent.is_some() && intent != initial_intent {
                        return None;
                    }
                }
            }
        }
    }

    /// Returns the API group for a new rewrite of this Rollout.
    fn rewrite_group(&self, rollout: &Rollout) -> RewriteGroup {
        let rewrite = rollout.status.as_ref().and_then(|status| status.rewrite.as_ref());
        let current_group = rewrite.and_then(|rewrite| RewriteGroup::from_name(&rewrite.group));
        self.store.new_rewrite_group(current_group).unwrap_or(self.new_rewrite_group)
    }

    fn decide(&self, key: &RolloutKey, rollout: &Rollout, observation: &Observation, started_at: Instant) -> Decision {
        let decision = decide(&DecisionInput { rollout, observed: &observation.observed }, self.clock.now());
        let last_action = rollout.status.as_ref().and_then(|status| status.last_action.as_ref());
        if let Some(action) = decision.status.last_action.as_ref().filter(|action| Some(*action) != last_action)
            && action.outcome().is_ok()
        {
            self.stats.record_intent(key, action.verb, started_at);
        }
        decision
    }

    /// Persists the status, applies the effects, and reports the events.
    async fn execute(
        &self,
        key: &RolloutKey,
        rollout: &Versioned<Arc<Rollout>>,
        observation: &Observation,
        decision: &Decision,
    ) -> Result<(), Requeue> {
        let decided_at = Instant::now();
        let version = self.persist_status(key, rollout, decision, decided_at).await?;
        let applied = self.apply_effects(key, &rollout.value, &version, observation, decision, decided_at).await;
        self.report(key, &decision.events).await;
        applied
    }

    /// Writes the status if it changed, or if the adapters file will be written. Returns the version of the Rollout
    /// that later writes must name.
    async fn persist_status(
        &self,
        key: &RolloutKey,
        rollout: &Versioned<Arc<Rollout>>,
        decision: &Decision,
        decided_at: Instant,
    ) -> Result<ResourceVersion, Requeue> {
        let version = &rollout.resource_version;
        let is_changed = rollout.value.status.as_ref() != Some(&decision.status);
        // The version of the adapters file does not prove that the status is current: another operator may have made
        // later decisions. Writing the unchanged status changes nothing, but conflicts if the status is outdated.
        let must_verify = !is_changed && decision.effects.iter().any(writes_adapters);
        if !is_changed && !must_verify {
            return Ok(version.clone());
        }
        let outcome = with_write_timeout(self.store.write_status(key, version, &decision.status)).await;
        if is_changed && let WriteOutcome::Refused(why) = &outcome {
            // The status itself cannot hold this message.
            let message = format!("the status was refused: {why}");
            let event = RolloutEvent { warning: true, reason: reason::WRITE_REFUSED.to_owned(), message };
            self.publish_event(key, &event).await;
        }
        let written_version = match &outcome {
            WriteOutcome::Done(written) if is_changed => written.clone(),
            _ => version.clone(),
        };
        self.check_write_outcome(key, "the status", outcome)?;
        if is_changed {
            self.stats.record_write(key, "status", decided_at);
        }
        Ok(written_version)
    }

    /// Applies the effects in order until one fails. `version` is that of the Rollout after its status was written.
    async fn apply_effects(
        &self,
        key: &RolloutKey,
        rollout: &Rollout,
        version: &ResourceVersion,
        observation: &Observation,
        decision: &Decision,
        decided_at: Instant,
    ) -> Result<(), Requeue> {
        for effect in &decision.effects {
            let applied = match effect {
                Effect::SetFinalizer(present) => {
                    let outcome = with_write_timeout(self.store.set_finalizer(key, version, *present)).await;
                    self.check_write_outcome(key, "the finalizer", outcome)
                }
                effect => self.apply_effect(key, rollout, observation, effect).await,
            };
            applied?;
            if matches!(effect, Effect::WriteRewrite(_)) {
                self.last_writes.record_sequence(key, decision.status.weights.sequence);
            }
            self.stats.record_write(key, stats::effect_name(effect), decided_at);
        }
        self.last_writes.clear_refusal(key);
        self.stats.clear_intent(key);
        Ok(())
    }

    /// Publishes the events of a decision whose status was persisted, also if an effect failed.
    async fn report(&self, key: &RolloutKey, events: &[RolloutEvent]) {
        for event in events {
            self.publish_event(key, event).await;
        }
    }

    async fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) {
        if event.warning {
            tracing::warn!(rollout = %key, reason = event.reason, "{}", event.message);
        } else {
            tracing::info!(rollout = %key, reason = event.reason, "{}", event.message);
        }
        if tokio::time::timeout(WRITE_TIMEOUT, self.store.publish_event(key, event)).await.is_err() {
            tracing::debug!(rollout = %key, reason = event.reason, "publishing an event timed out");
        }
    }

    pub(crate) async fn apply_effect(
        &self,
        key: &RolloutKey,
        rollout: &Rollout,
        observation: &Observation,
        effect: &Effect,
    ) -> Result<(), Requeue> {
        match effect {
            Effect::WriteRewrite(rewrite) => {
                let version = observation.rewrite_version(rewrite);
                let precondition = version.map_or(Precondition::Absent, Precondition::Unchanged);
                let outcome = with_write_timeout(self.store.write_rewrite(key, rewrite, &precondition)).await;
                self.check_write_outcome(key, &format!("rewrite {}", rewrite.metadata.name), outcome)
            }
            // Applied by `apply_effects`, which has the version of the Rollout after the write of its status.
            Effect::SetFinalizer(_) => Ok(()),
            Effect::WriteAdapters { user_text, directives } => {
                // A file is only written as a change of a version that was read.
                let Some(version) = &observation.adapters_version else { return Err(Requeue::Now) };
                let write = AdaptersWrite {
                    user_text: user_text.clone(),
                    directives_text: directives
                        .as_ref()
                        .map(rollora_api::operator_directives::OperatorDirectives::to_yaml),
                };
                let reference = &rollout.spec.adapters_ref;
                let outcome = with_write_timeout(self.store.write_adapters(key, reference, version, &write)).await;
                self.check_write_outcome(key, &format!("adapters file {}", reference.name), outcome)
            }
        }
    }

    /// Converts the outcome of a write of `what` into the end of the reconcile, if it failed.
    fn check_write_outcome(&self, key: &RolloutKey, what: &str, outcome: WriteOutcome) -> Result<(), Requeue> {
        match outcome {
            WriteOutcome::Done(_) => Ok(()),
            WriteOutcome::Conflict => Err(Requeue::Now),
            WriteOutcome::Unavailable(why) => Err(Requeue::Backoff(format!("{what} could not be written: {why}"))),
            WriteOutcome::Unknown(why) => {
                Err(Requeue::Backoff(format!("{what} may or may not have been written: {why}")))
            }
            WriteOutcome::Refused(why) => {
                let message = format!("{what} was refused: {why}");
                self.last_writes.record_refusal(key, message.clone());
                Err(Requeue::Backoff(message))
            }
        }
    }
}

/// Returns the intent that the status has not answered yet. An invalid one counts as none.
fn pending_intent(rollout: &Rollout) -> Option<Intent> {
    Intent::pending(rollout).ok().flatten()
}

/// Returns when to reconcile again after a success.
///
/// `stale_until` is set if the decision used responses that are older than the last change: they may not contain it,
/// and no other event may report it, so the decision is repeated as soon as newer responses can be requested.
fn requeue_after(requeue: Option<Duration>, stale_until: Option<Instant>) -> Requeue {
    let stale = stale_until.map(|until| until.saturating_duration_since(Instant::now()));
    [requeue, stale].into_iter().flatten().min().map_or(Requeue::OnChange, Requeue::After)
}

fn writes_adapters(effect: &Effect) -> bool {
    matches!(effect, Effect::WriteAdapters { .. })
}

/// Applies the write timeout to one write; a timeout leaves its outcome unknown.
async fn with_write_timeout(write: impl Future<Output = WriteOutcome>) -> WriteOutcome {
    let result = tokio::time::timeout(WRITE_TIMEOUT, write).await;
    result.unwrap_or_else(|_| WriteOutcome::Unknown(format!("no answer within {WRITE_TIMEOUT:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn decision_on_stale_responses_is_repeated_after_ttl() {
        let in_millis = |millis| Some(Duration::from_millis(millis));
        let at = |millis| Some(Instant::now() + Duration::from_millis(millis));
        assert_eq!(requeue_after(None, None), Requeue::OnChange);
        assert_eq!(requeue_after(None, at(700)), Requeue::After(Duration::from_millis(700)));
        assert_eq!(requeue_after(in_millis(900), at(700)), Requeue::After(Duration::from_millis(700)));
        assert_eq!(requeue_after(in_millis(300), at(700)), Requeue::After(Duration::from_millis(300)));
        assert_eq!(requeue_after(None, Some(Instant::now())), Requeue::After(Duration::ZERO));
    }
}
