//! One reconcile: observe, decide, write the status, do the effects, tell people.

use crate::{
    Clock, Operator, WRITE_LIMIT,
    observe::{self, Look},
    ports::{AdaptersWrite, Event, Fleet, Precondition, RolloutKey, Store, Versioned, Written},
    tally,
};
use rollora_api::{
    condition::reason,
    rewrite::RewriteGroup,
    rollout::{Intent, Rollout},
};
use rollora_plan::{Decision, Input, decide, effect::Effect, is_urgent, observed::Unseen};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// When a key is reconciled again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// When something happens to it.
    OnChange,
    /// After this time, or when something happens to it.
    After(Duration),
    /// At once.
    Again,
    /// After a while, because of this.
    Retry(String),
    /// Never: the Rollout is gone.
    Forget,
}

impl<S: Store, F: Fleet, C: Clock> Operator<S, F, C> {
    /// Looks at one Rollout and does what is to be done for it now.
    pub async fn reconcile(&self, key: &RolloutKey) -> Next {
        self.reconcile_unless_woken(key, Instant::now(), &Notify::new()).await
    }

    /// The same where something happened last at `news`; a wake while servers and routers are asked is a reason to see
    /// whether somebody asks for something.
    pub(crate) async fn reconcile_unless_woken(&self, key: &RolloutKey, news: Instant, wake: &Notify) -> Next {
        let rollout = match self.rollout(key).await {
            Ok(Some(rollout)) => rollout,
            Ok(None) => return self.bid_farewell(key).await,
            Err(error) => return Next::Retry(format!("the Rollout cannot be read: {error}")),
        };
        let begun = Instant::now();
        self.remember(key, &rollout.value);
        let urgent = is_urgent(&rollout.value);
        let mut look = if urgent {
            observe::rewrites_only(&self.store, key, self.group(&rollout.value)).await
        } else {
            match self.look_around(key, &rollout.value, wake).await {
                Some(look) => look,
                None => return Next::Again,
            }
        };
        (look.world.refused, look.world.taken) = (self.aftermath.refused(key), self.aftermath.taken(key));
        let decision = decide(&Input { rollout: &rollout.value, world: &look.world }, self.clock.now());
        let last = rollout.value.status.as_ref().and_then(|status| status.last_action.as_ref());
        if let Some(action) = decision.status.last_action.as_ref().filter(|action| Some(*action) != last)
            && action.outcome().is_ok()
        {
            self.tally.asked(key, action.verb, begun);
        }
        let next = match self.carry_out(key, &rollout, &look, &decision).await {
            Ok(()) if urgent => Next::Again,
            Ok(()) => {
                let next = rest(decision.requeue, look.outdated_until(news));
                if look.adapters.is_some() { self.leave_former_files(key, next).await } else { next }
            }
            Err(next) => next,
        };
        tracing::debug!(rollout = %key, ?next, phase = ?decision.status.phase, "reconciled");
        next
    }

    fn group(&self, rollout: &Rollout) -> RewriteGroup {
        let rewrite = rollout.status.as_ref().and_then(|status| status.rewrite.as_ref());
        let kept = rewrite.and_then(|rewrite| RewriteGroup::from_name(&rewrite.group));
        self.store.new_rewrite_group(kept).unwrap_or(self.new_rewrite_group)
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, Unseen> {
        observe::read(self.store.rollout(key)).await
    }

    /// Asks for everything; nothing where somebody asked for something meanwhile.
    async fn look_around(&self, key: &RolloutKey, rollout: &Rollout, wake: &Notify) -> Option<Look> {
        let ports = (&self.store, &self.fleet);
        let (group, now, begun_for) = (self.group(rollout), self.clock.now(), wish(rollout));
        let mut looking = std::pin::pin!(observe::everything(ports, &self.memory, key, rollout, group, now));
        loop {
            tokio::select! {
                biased;
                look = &mut looking => return Some(look),
                () = wake.notified() => {
                    let wish = self.rollout(key).await.ok().flatten().and_then(|rollout| wish(&rollout.value));
                    if wish.is_some() && wish != begun_for {
                        return None;
                    }
                }
            }
        }
    }

    /// Status first, then effects in order, up to the first that is not done. What was decided is told in any case.
    async fn carry_out(
        &self,
        key: &RolloutKey,
        rollout: &Versioned<Arc<Rollout>>,
        look: &Look,
        decision: &Decision,
    ) -> Result<(), Next> {
        let decided = Instant::now();
        let mut version = rollout.version.clone();
        if rollout.value.status.as_ref() != Some(&decision.status) {
            let written = limited(self.store.write_status(key, &version, &decision.status)).await;
            if let Written::Refused(why) = &written {
                // There is no other place where this could be said.
                let message = format!("the status was refused: {why}");
                let event = Event { warning: true, reason: reason::WRITE_REFUSED.to_owned(), message };
                self.tell(key, &event).await;
            }
            if let Written::Done(written) = &written {
                version = written.clone();
            }
            self.judge(key, "the status", written)?;
            self.tally.wrote(key, "status", decided);
        }
        if rollout.value.status.as_ref() == Some(&decision.status) && decision.effects.iter().any(is_of_adapters) {
            // The file's version says nothing about the age of the status that this was decided from: another operator
            // may have gone on long since. Writing the status as it is changes nothing, and is refused then.
            let written = limited(self.store.write_status(key, &version, &decision.status)).await;
            self.judge(key, "the status", written)?;
        }
        let mut result = Ok(());
        for effect in &decision.effects {
            result = match effect {
                Effect::GuardDeletion(guarded) => {
                    let written = limited(self.store.guard_deletion(key, &version, *guarded)).await;
                    self.judge(key, "the finalizer", written)
                }
                effect => self.apply(key, &rollout.value, look, effect).await,
            };
            if result.is_err() {
                break;
            }
            if matches!(effect, Effect::WriteRewrite(_)) {
                self.aftermath.take(key, decision.status.weights.sequence);
            }
            self.tally.wrote(key, tally::name(effect), decided);
        }
        if result.is_ok() {
            self.aftermath.settle(key);
            self.tally.settled(key);
        }
        for event in &decision.events {
            self.tell(key, event).await;
        }
        result
    }

    async fn tell(&self, key: &RolloutKey, event: &Event) {
        if event.warning {
            tracing::warn!(rollout = %key, reason = event.reason, "{}", event.message);
        } else {
            tracing::info!(rollout = %key, reason = event.reason, "{}", event.message);
        }
        if tokio::time::timeout(WRITE_LIMIT, self.store.event(key, event)).await.is_err() {
            tracing::debug!(rollout = %key, "an event could not be told in time");
        }
    }

    pub(crate) async fn apply(
        &self,
        key: &RolloutKey,
        rollout: &Rollout,
        look: &Look,
        effect: &Effect,
    ) -> Result<(), Next> {
        match effect {
            Effect::WriteRewrite(rewrite) => {
                let version = look.version_of(rewrite);
                let precondition = version.map_or(Precondition::Absent, Precondition::Unchanged);
                let written = limited(self.store.write_rewrite(key, rewrite, &precondition)).await;
                self.judge(key, &format!("rewrite {}", rewrite.metadata.name), written)
            }
            // It belongs to the Rollout itself, whose version is known where its status is written.
            Effect::GuardDeletion(_) => Ok(()),
            Effect::WriteAdapters { user_text, key: operator_key } => {
                // What was not read is not written.
                let Some(version) = &look.adapters else { return Err(Next::Again) };
                let write = AdaptersWrite {
                    user_text: user_text.clone(),
                    key_text: operator_key.as_ref().map(rollora_api::operator_directives::OperatorDirectives::to_yaml),
                };
                let reference = &rollout.spec.adapters_ref;
                let written = limited(self.store.write_adapters(key, reference, version, &write)).await;
                self.judge(key, &format!("adapters file {}", reference.name), written)
            }
        }
    }

    /// What a write's end means for the rest of the reconcile.
    fn judge(&self, key: &RolloutKey, what: &str, written: Written) -> Result<(), Next> {
        match written {
            Written::Done(_) => Ok(()),
            Written::Stale => Err(Next::Again),
            Written::Unavailable(why) => Err(Next::Retry(format!("{what} could not be written: {why}"))),
            Written::Unknown(why) => Err(Next::Retry(format!("whether {what} was written is not known: {why}"))),
            Written::Refused(why) => {
                let message = format!("{what} was refused: {why}");
                self.aftermath.refuse(key, message.clone());
                Err(Next::Retry(message))
            }
        }
    }
}

/// What somebody asked for and nobody has answered yet.
fn wish(rollout: &Rollout) -> Option<Intent> {
    Intent::pending(rollout).ok().flatten()
}

/// When to look again. What was decided on answers from before something happened is decided once more as soon as there
/// can be others: what happened may not be in them, and nothing else may ever tell of it.
fn rest(requeue: Option<Duration>, outdated_until: Option<Instant>) -> Next {
    let outdated = outdated_until.map(|until| until.saturating_duration_since(Instant::now()));
    [requeue, outdated].into_iter().flatten().min().map_or(Next::OnChange, Next::After)
}

fn is_of_adapters(effect: &Effect) -> bool {
    matches!(effect, Effect::WriteAdapters { .. })
}

/// One write with its time limit.
async fn limited(writing: impl Future<Output = Written>) -> Written {
    let limit = tokio::time::timeout(WRITE_LIMIT, writing).await;
    limit.unwrap_or_else(|_| Written::Unknown(format!("no answer within {WRITE_LIMIT:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_decided_on_answers_from_before_is_decided_once_more_when_there_can_be_others() {
        let in_millis = |millis| Some(Duration::from_millis(millis));
        let at = |millis| Some(Instant::now() + Duration::from_millis(millis));
        assert_eq!(rest(None, None), Next::OnChange);
        assert_eq!(rest(None, at(700)), Next::After(Duration::from_millis(700)));
        assert_eq!(rest(in_millis(900), at(700)), Next::After(Duration::from_millis(700)));
        assert_eq!(rest(in_millis(300), at(700)), Next::After(Duration::from_millis(300)));
        assert_eq!(rest(None, Some(Instant::now())), Next::After(Duration::ZERO));
    }
}
