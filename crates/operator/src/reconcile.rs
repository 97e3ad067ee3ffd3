//! One reconcile: observe, decide, write the status, do the effects, tell people.

use crate::{
    Clock, Operator, WRITE_TIMEOUT,
    observe::{self, Observation},
    ports::{AdaptersWrite, DocumentStore, Fleet, Precondition, RolloutEvent, RolloutKey, Versioned, WriteOutcome},
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
    /// When something happens to it.
    OnChange,
    /// After this time, or when something happens to it.
    After(Duration),
    /// At once.
    Now,
    /// After a while, because of this.
    Backoff(String),
    /// Never: the Rollout is gone.
    Forget,
}

impl<S: DocumentStore, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Looks at one Rollout and does what is to be done for it now.
    pub async fn reconcile(&self, key: &RolloutKey) -> Requeue {
        self.reconcile_interruptible(key, Instant::now(), &Notify::new()).await
    }

    /// The same where something happened last at `news`; a wake while servers and routers are asked is a reason to see
    /// whether somebody asks for something.
    pub(crate) async fn reconcile_interruptible(&self, key: &RolloutKey, news: Instant, wake: &Notify) -> Requeue {
        let rollout = match self.read_rollout(key).await {
            Ok(Some(rollout)) => rollout,
            Ok(None) => return self.finalize_deleted(key).await,
            Err(error) => return Requeue::Backoff(format!("the Rollout cannot be read: {error}")),
        };
        let begun = Instant::now();
        self.track_rollout(key, &rollout.value);
        let urgent = has_pending_abort(&rollout.value);
        let mut look = if urgent {
            observe::observe_rewrites(&self.store, key, self.rewrite_group(&rollout.value)).await
        } else {
            match self.observe(key, &rollout.value, wake).await {
                Some(look) => look,
                None => return Requeue::Now,
            }
        };
        (look.observed.write_refusal, look.observed.overwritten_sequence) =
            (self.last_writes.refusal(key), self.last_writes.take_stamp(key));
        let decision = decide(&DecisionInput { rollout: &rollout.value, observed: &look.observed }, self.clock.now());
        let last = rollout.value.status.as_ref().and_then(|status| status.last_action.as_ref());
        if let Some(action) = decision.status.last_action.as_ref().filter(|action| Some(*action) != last)
            && action.outcome().is_ok()
        {
            self.stats.record_intent(key, action.verb, begun);
        }
        let next = match self.apply_decision(key, &rollout, &look, &decision).await {
            Ok(()) if urgent => Requeue::Now,
            Ok(()) => {
                let next = requeue_after(decision.requeue_after, look.stale_until(news));
                if look.adapters_version.is_some() { self.clear_former_files(key, next).await } else { next }
            }
            Err(next) => next,
        };
        tracing::debug!(rollout = %key, ?next, phase = ?decision.status.phase, "reconciled");
        next
    }

    fn rewrite_group(&self, rollout: &Rollout) -> RewriteGroup {
        let rewrite = rollout.status.as_ref().and_then(|status| status.rewrite.as_ref());
        let kept = rewrite.and_then(|rewrite| RewriteGroup::from_name(&rewrite.group));
        self.store.new_rewrite_group(kept).unwrap_or(self.new_rewrite_group)
    }

    async fn read_rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ObserveError> {
        observe::with_read_timeout(self.store.rollout(key)).await
    }

    /// Asks for everything; nothing where somebody asked for something meanwhile.
    async fn observe(&self, key: &RolloutKey, rollout: &Rollout, wake: &Notify) -> Option<Observation> {
        let ports = (&self.store, &self.fleet);
        let (group, now, begun_for) = (self.rewrite_group(rollout), self.clock.now(), pending_intent(rollout));
        let mut looking = std::pin::pin!(observe::observe_all(ports, &self.observe_cache, key, rollout, group, now));
        loop {
            tokio::select! {
                biased;
                look = &mut looking => return Some(look),
                () = wake.notified() => {
                    let wish = self.read_rollout(key).await.ok().flatten().and_then(|rollout| pending_intent(&rollout.value));
                    if wish.is_some() && wish != begun_for {
                        return None;
                    }
                }
            }
        }
    }

    /// Status first, then effects in order, up to the first that is not done. What was decided is told in any case.
    async fn apply_decision(
        &self,
        key: &RolloutKey,
        rollout: &Versioned<Arc<Rollout>>,
        look: &Observation,
        decision: &Decision,
    ) -> Result<(), Requeue> {
        let decided = Instant::now();
        let mut version = rollout.resource_version.clone();
        if rollout.value.status.as_ref() != Some(&decision.status) {
            let written = with_write_timeout(self.store.write_status(key, &version, &decision.status)).await;
            if let WriteOutcome::Refused(why) = &written {
                // There is no other place where this could be said.
                let message = format!("the status was refused: {why}");
                let event = RolloutEvent { warning: true, reason: reason::WRITE_REFUSED.to_owned(), message };
                self.publish_event(key, &event).await;
            }
            if let WriteOutcome::Done(written) = &written {
                version = written.clone();
            }
            self.check_write_outcome(key, "the status", written)?;
            self.stats.record_write(key, "status", decided);
        }
        if rollout.value.status.as_ref() == Some(&decision.status) && decision.effects.iter().any(writes_adapters) {
            // The file's version says nothing about the age of the status that this was decided from: another operator
            // may have gone on long since. Writing the status as it is changes nothing, and is refused then.
            let written = with_write_timeout(self.store.write_status(key, &version, &decision.status)).await;
            self.check_write_outcome(key, "the status", written)?;
        }
        let mut result = Ok(());
        for effect in &decision.effects {
            result = match effect {
                Effect::SetFinalizer(guarded) => {
                    let written = with_write_timeout(self.store.set_finalizer(key, &version, *guarded)).await;
                    self.check_write_outcome(key, "the finalizer", written)
                }
                effect => self.apply_effect(key, &rollout.value, look, effect).await,
            };
            if result.is_err() {
                break;
            }
            if matches!(effect, Effect::WriteRewrite(_)) {
                self.last_writes.record_stamp(key, decision.status.weights.sequence);
            }
            self.stats.record_write(key, stats::effect_name(effect), decided);
        }
        if result.is_ok() {
            self.last_writes.clear_refusal(key);
            self.stats.clear_intent(key);
        }
        for event in &decision.events {
            self.publish_event(key, event).await;
        }
        result
    }

    async fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) {
        if event.warning {
            tracing::warn!(rollout = %key, reason = event.reason, "{}", event.message);
        } else {
            tracing::info!(rollout = %key, reason = event.reason, "{}", event.message);
        }
        if tokio::time::timeout(WRITE_TIMEOUT, self.store.publish_event(key, event)).await.is_err() {
            tracing::debug!(rollout = %key, "an event could not be told in time");
        }
    }

    pub(crate) async fn apply_effect(
        &self,
        key: &RolloutKey,
        rollout: &Rollout,
        look: &Observation,
        effect: &Effect,
    ) -> Result<(), Requeue> {
        match effect {
            Effect::WriteRewrite(rewrite) => {
                let version = look.rewrite_version(rewrite);
                let precondition = version.map_or(Precondition::Absent, Precondition::Unchanged);
                let written = with_write_timeout(self.store.write_rewrite(key, rewrite, &precondition)).await;
                self.check_write_outcome(key, &format!("rewrite {}", rewrite.metadata.name), written)
            }
            // It belongs to the Rollout itself, whose version is known where its status is written.
            Effect::SetFinalizer(_) => Ok(()),
            Effect::WriteAdapters { user_text, directives: operator_key } => {
                // What was not read is not written.
                let Some(version) = &look.adapters_version else { return Err(Requeue::Now) };
                let write = AdaptersWrite {
                    user_text: user_text.clone(),
                    directives_text: operator_key
                        .as_ref()
                        .map(rollora_api::operator_directives::OperatorDirectives::to_yaml),
                };
                let reference = &rollout.spec.adapters_ref;
                let written = with_write_timeout(self.store.write_adapters(key, reference, version, &write)).await;
                self.check_write_outcome(key, &format!("adapters file {}", reference.name), written)
            }
        }
    }

    /// What a write's end means for the rest of the reconcile.
    fn check_write_outcome(&self, key: &RolloutKey, what: &str, written: WriteOutcome) -> Result<(), Requeue> {
        match written {
            WriteOutcome::Done(_) => Ok(()),
            WriteOutcome::Conflict => Err(Requeue::Now),
            WriteOutcome::Unavailable(why) => Err(Requeue::Backoff(format!("{what} could not be written: {why}"))),
            WriteOutcome::Unknown(why) => {
                Err(Requeue::Backoff(format!("whether {what} was written is not known: {why}")))
            }
            WriteOutcome::Refused(why) => {
                let message = format!("{what} was refused: {why}");
                self.last_writes.record_refusal(key, message.clone());
                Err(Requeue::Backoff(message))
            }
        }
    }
}

/// What somebody asked for and nobody has answered yet.
fn pending_intent(rollout: &Rollout) -> Option<Intent> {
    Intent::pending(rollout).ok().flatten()
}

/// When to look again. What was decided on answers from before something happened is decided once more as soon as there
/// can be others: what happened may not be in them, and nothing else may ever tell of it.
fn requeue_after(requeue: Option<Duration>, outdated_until: Option<Instant>) -> Requeue {
    let outdated = outdated_until.map(|until| until.saturating_duration_since(Instant::now()));
    [requeue, outdated].into_iter().flatten().min().map_or(Requeue::OnChange, Requeue::After)
}

fn writes_adapters(effect: &Effect) -> bool {
    matches!(effect, Effect::WriteAdapters { .. })
}

/// One write with its time limit.
async fn with_write_timeout(writing: impl Future<Output = WriteOutcome>) -> WriteOutcome {
    let limit = tokio::time::timeout(WRITE_TIMEOUT, writing).await;
    limit.unwrap_or_else(|_| WriteOutcome::Unknown(format!("no answer within {WRITE_TIMEOUT:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_decided_on_answers_from_before_is_decided_once_more_when_there_can_be_others() {
        let in_millis = |millis| Some(Duration::from_millis(millis));
        let at = |millis| Some(Instant::now() + Duration::from_millis(millis));
        assert_eq!(requeue_after(None, None), Requeue::OnChange);
        assert_eq!(requeue_after(None, at(700)), Requeue::After(Duration::from_millis(700)));
        assert_eq!(requeue_after(in_millis(900), at(700)), Requeue::After(Duration::from_millis(700)));
        assert_eq!(requeue_after(in_millis(300), at(700)), Requeue::After(Duration::from_millis(300)));
        assert_eq!(requeue_after(None, Some(Instant::now())), Requeue::After(Duration::ZERO));
    }
}
