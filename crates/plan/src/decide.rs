//! One decision, from the observed state to the writes.
//!
//! The order: adoption if there is no status, the rewrite as observed, the intent, the desired adapter, its admission,
//! traffic, retirements, the derived status, and then the effects that are still missing.

mod admit;
mod adopt;
mod contest;
mod finalize;
mod relisted;
mod rivals;
#[cfg(test)]
mod tests;
mod writes;

pub use finalize::finalize_deleted;

use crate::{
    capacity,
    conflict::{self, Conflict},
    desired::{self, DesiredAdapter},
    effect::Effect,
    event::RolloutEvent,
    intent::{self, PendingIntent},
    observed::{AdaptersConfigMap, ObserveError, ObservedServer, ObservedState},
    residency::{self, ResidencyGate},
    retire, rewrite, rewrite_conditions,
    routers::{self, ExpectedRule, RouterProof},
    status::{self, StatusWriter},
    text,
    traffic::{self, NewlyRetired, TrafficMachine},
    wait::{RequeueWhen, Wait},
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, ContentHash},
    condition::{ConditionStatus, condition_type, reason},
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{
        Rollout, RolloutStatus,
        spec::RolloutSpec,
        status::{ObservedAdapters, RetirementState},
    },
};
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

/// When a part that could not be observed is polled again, even if nothing waits for it.
const UNOBSERVED_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A step that has waited for servers or routers for longer than this polls them less often.
const FAST_POLL_WINDOW: Duration = Duration::from_secs(10);
/// The poll interval after [`FAST_POLL_WINDOW`]: a cause that lasts this long rarely disappears within seconds.
const SLOW_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// When servers that do not report `max_loras` yet are polled again while a rollout is unfinished.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The number of distinct values that [`DecisionContext::jitter`] can return.
const JITTER_BUCKETS: u32 = 64;

/// The inputs of one decision, besides the time.
#[derive(Debug, Clone, Copy)]
pub struct DecisionInput<'a> {
    /// The Rollout: its spec, its metadata and the previous status.
    pub rollout: &'a Rollout,
    /// Everything else, as far as it could be observed.
    pub observed: &'a ObservedState,
}

/// What to write, and when to decide again.
///
/// The caller writes the status, then the effects in order up to the first that fails, then the events.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The new status; equal to the previous one if no write is needed.
    pub status: RolloutStatus,
    /// The writes that are missing, in the order in which they must be made.
    pub effects: Vec<Effect>,
    /// Kubernetes events to publish.
    pub events: Vec<RolloutEvent>,
    /// When to decide again if nothing changes before; `None` if only a change can matter.
    pub requeue_after: Option<Duration>,
}

/// Returns what follows from the observed state at `now`.
///
/// The function is pure: equal inputs give equal decisions.
pub fn decide(input: &DecisionInput<'_>, now: Timestamp) -> Decision {
    let context = DecisionContext::new(input, now);
    let previous = input.rollout.status.clone().unwrap_or_default();
    let builder = DecisionBuilder { status: previous.clone(), events: Vec::new(), newly_retired: Vec::new() };
    let decision = if input.rollout.metadata.deletion_timestamp.is_some() {
        context.finalize(builder)
    } else if let Some(cause) = context.stall_cause() {
        context.decide_stalled(builder, &cause)
    } else {
        context.decide_active(builder)
    };
    status::throttle(&previous, decision, status::file_change_due(&context), now)
}

/// Why nothing new may begin; becomes the condition `Stalled`.
struct StallCause {
    reason: &'static str,
    message: String,
    /// Whether this Rollout still owns its rule: written weights stay, and an abort is applied.
    owns_rule: bool,
}

/// A decision under construction.
#[derive(Debug)]
pub(crate) struct DecisionBuilder {
    /// The status so far; it starts as the previous one.
    pub(crate) status: RolloutStatus,
    /// Events recorded so far.
    pub(crate) events: Vec<RolloutEvent>,
    /// Ids that lost their last weight in this decision.
    pub(crate) newly_retired: Vec<NewlyRetired>,
}

impl DecisionBuilder {
    /// Runs `act` on the traffic machine and collects its events and retired ids.
    fn with_traffic<R>(&mut self, act: impl FnOnce(&mut TrafficMachine<'_>) -> R) -> R {
        let mut traffic = TrafficMachine::from_status(&mut self.status);
        let result = act(&mut traffic);
        self.events.append(&mut traffic.events);
        self.newly_retired.append(&mut traffic.newly_retired);
        result
    }

    pub(crate) fn record_event(&mut self, warning: bool, reason: &str, message: impl Into<String>) {
        self.events.push(RolloutEvent { warning, reason: reason.to_owned(), message: message.into() });
    }
}

/// The read-only inputs of the steps of one decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecisionContext<'a> {
    pub(crate) rollout: &'a Rollout,
    pub(crate) spec: &'a RolloutSpec,
    pub(crate) observed: &'a ObservedState,
    pub(crate) now: Timestamp,
    /// The Rollout's UID, or its name if it has none (as with `rollora local`).
    uid: &'a str,
    /// The rewrite that carries the weights; `None` if it does not exist or is being deleted.
    rewrite: Option<&'a InferenceModelRewrite>,
}

impl<'a> DecisionContext<'a> {
    fn new(input: &DecisionInput<'a>, now: Timestamp) -> Self {
        let (rollout, observed) = (input.rollout, input.observed);
        let uid = rollout.metadata.uid.as_deref().unwrap_or(&rollout.metadata.name);
        let context = Self { rollout, spec: &rollout.spec, observed, now, uid, rewrite: None };
        let rewrites = observed.rewrites.as_ref().ok();
        let group = recorded_group(rollout, context.rewrite_name());
        Self {
            rewrite: rewrites.and_then(|rewrites| rewrite::find(context.rewrite_name(), group, rewrites)),
            ..context
        }
    }

    /// Returns a part of `max` that is constant for this Rollout and differs between Rollouts.
    pub(crate) fn jitter(&self, max: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.uid.hash(&mut hasher);
        let part = u32::try_from(hasher.finish() % u64::from(JITTER_BUCKETS)).unwrap_or_default();
        max * part / JITTER_BUCKETS
    }

    fn rewrite_name(&self) -> &'a str {
        let reference = self.spec.rewrite_ref.as_ref();
        reference.map_or(&self.rollout.metadata.name, |reference| &reference.name)
    }

    pub(crate) fn adapters(&self) -> Option<&'a AdaptersConfigMap> {
        self.observed.adapters.as_ref().ok().and_then(Option::as_ref)
    }

    pub(crate) fn content_hash(&self) -> Option<&'a ContentHash> {
        self.adapters().map(|adapters| &adapters.hash)
    }

    /// Returns the adapters file, or why it cannot be used.
    pub(crate) fn adapters_file(&self) -> Result<&'a AdaptersFile, String> {
        let name = &self.spec.adapters_ref.name;
        match &self.observed.adapters {
            Ok(Some(adapters)) => adapters.file.as_ref().map_err(|error| format!("the adapters file {name}, {error}")),
            Ok(None) => Err(format!("the adapters file {name} does not exist: create it, or fix spec.adaptersRef")),
            Err(error) => Err(format!("the adapters file {name} cannot be read: {error}")),
        }
    }

    /// Returns a wait if the adapters file cannot be used.
    fn file_wait(&self) -> Option<Wait> {
        let why = self.adapters_file().err()?;
        Some(match &self.observed.adapters {
            Err(ObserveError::Unavailable(_) | ObserveError::NotAttempted) => Wait::soon(reason::UNAVAILABLE, why),
            Err(ObserveError::Invalid(_)) | Ok(_) => Wait::for_fix(self.now, why),
        })
    }

    /// Returns when to observe again what could not be observed now, even if nothing waits for it.
    fn unobserved_requeue(&self) -> Option<RequeueWhen> {
        let observed = self.observed;
        let errors = [
            observed.adapters.as_ref().err(),
            observed.rewrites.as_ref().err(),
            observed.servers.as_ref().err(),
            observed.other_pool_servers.as_ref().err(),
            observed.routers.as_ref().err(),
            observed.rollouts.as_ref().err(),
        ];
        let unavailable = errors.into_iter().flatten().any(|error| matches!(error, ObserveError::Unavailable(_)));
        unavailable.then(|| RequeueWhen::At(text::after(self.now, UNOBSERVED_POLL_INTERVAL)))
    }

    /// Returns when to poll the servers again if one lacks an adapter with weight: its pod may stay Ready, so no watch
    /// event reports the recovery.
    fn lost_residency_requeue(&self, status: &RolloutStatus) -> Option<RequeueWhen> {
        let servers = self.servers()?;
        let lost =
            status.weights.desired.iter().any(|target| !residency::servers_lacking(&target.id, servers).is_empty());
        lost.then(|| RequeueWhen::At(text::after(self.now, SLOW_POLL_INTERVAL)))
    }

    /// Returns a wait for each input that a person must fix: it is missing, or invalid as stored.
    fn invalid_input_waits(&self) -> impl Iterator<Item = Wait> {
        let rewrites = self.observed.rewrites.as_ref().err().map(|error| ("the rewrites cannot be read", error));
        let servers =
            self.observed.servers.as_ref().err().map(|error| ("the servers of the pool cannot be listed", error));
        let unobserved = rewrites.into_iter().chain(servers);
        let waits =
            unobserved.map(|(what, error)| Wait::while_unobservable(what, error, self.now)).chain(self.file_wait());
        waits.filter(|wait| wait.reason == reason::INVALID)
    }

    pub(crate) fn servers(&self) -> Option<&'a [ObservedServer]> {
        self.observed.servers.as_deref().ok()
    }

    /// Returns every other Rollout; empty if they could not be listed.
    pub(crate) fn other_rollouts(&self) -> impl Iterator<Item = &'a Rollout> {
        let (rollout, all) = (self.rollout, self.observed.rollouts.as_deref().unwrap_or_default());
        all.iter().map(Arc::as_ref).filter(move |other| !conflict::is_same_rollout(rollout, other))
    }

    /// Returns the version of the adapters ConfigMap that this decision is based on.
    pub(crate) fn observed_adapters(&self) -> Option<ObservedAdapters> {
        let observed = |adapters: &AdaptersConfigMap| ObservedAdapters {
            resource_version: adapters.version.clone(),
            hash: adapters.hash.clone(),
        };
        self.adapters().map(observed)
    }

    /// Returns whether servers and routers were queried: an abort is decided without them.
    pub(crate) fn is_observation_attempted(&self) -> bool {
        self.observed.servers != Err(ObserveError::NotAttempted)
    }

    fn is_fully_observed(&self) -> bool {
        let observed = self.observed;
        self.adapters().is_some() && observed.rewrites.is_ok() && observed.servers.is_ok() && observed.routers.is_ok()
    }

    /// Returns why nothing new may begin.
    fn stall_cause(&self) -> Option<StallCause> {
        if let Some(error) = self.spec.validate().first() {
            let message = format!("{}: {}", error.path, error.message);
            return Some(StallCause { reason: reason::INVALID, message, owns_rule: true });
        }
        let conflict = |message, owns_rule| StallCause { reason: reason::CONFLICT, message, owns_rule };
        // A Rollout that has begun has weights in the rewrite, and no other Rollout maintains them.
        let has_begun = || self.rewrite.is_some_and(|rewrite| rewrite::stamped_sequence(rewrite, self.uid).is_some());
        let rollout_conflict = match &self.observed.rollouts {
            Ok(rollouts) => conflict::find_conflict(self.rollout, rollouts).map(|other| {
                let owns_rule = matches!(other, Conflict::SameAdapters(_)) && has_begun();
                conflict(other.into_message(), owns_rule)
            }),
            // While the Rollouts cannot be listed, the last known conflict stands.
            Err(_) => self.previous_conflict().map(|message| conflict(message, has_begun())),
        };
        rollout_conflict.or_else(|| self.pool_mismatch().map(|message| conflict(message, false)))
    }

    fn previous_conflict(&self) -> Option<String> {
        let conditions = &self.rollout.status.as_ref()?.conditions;
        let stalled = conditions.iter().find(|condition| condition.type_ == condition_type::STALLED)?;
        (stalled.status == ConditionStatus::True && stalled.reason == reason::CONFLICT).then(|| stalled.message.clone())
    }

    fn decide_active(&self, mut builder: DecisionBuilder) -> Decision {
        let desired = desired::resolve(&self.spec.adapter, self.adapters_file());
        if is_uninitialized(&builder.status)
            && let Some(wait) = self.adopt(&mut builder, &desired)
        {
            return self.wait_for_adoption(builder, &wait);
        }
        self.observe_rewrite(&mut builder);
        self.record_listings(&mut builder.status);
        self.apply_intent(&mut builder);
        self.update_desired(&mut builder, &desired);
        let residency_wait = self.double_rewrite(&builder.status).or_else(|| self.admit(&mut builder));
        let (gate, proof) = (self.residency_gate(&builder.status), self.prove_routers(&builder.status));
        let inputs = traffic::TrafficInputs {
            now: self.now,
            paused: self.spec.paused,
            strategy: &self.spec.strategy,
            observation_attempted: self.is_observation_attempted(),
            fully_observed: self.is_fully_observed(),
            servers: self.servers(),
            gate: gate.as_ref(),
            residency_wait: residency_wait.as_ref(),
            proof: &proof,
        };
        let mut waits = builder.with_traffic(|traffic| traffic.advance(inputs));
        if waits.is_empty() {
            waits.extend(residency_wait);
            waits.extend(self.unresolved_wait(&builder.status, &desired));
        }
        let invalid = self
            .invalid_input_waits()
            .filter(|wait| !waits.iter().any(|other| other.message.starts_with(&wait.message)));
        waits.splice(0..0, invalid.collect::<Vec<_>>());
        let proof = self.prove_routers(&builder.status);
        if waits.is_empty()
            && let Some(other) = &proof.shadowed_by
        {
            waits.push(Wait::on_change(reason::SHADOWED_BY, routers::shadowed_message(other)));
        }
        let mut retirement_waits = retire::advance_all(self, &mut builder, &proof);
        if !self.is_observation_attempted() {
            // Servers and routers were not queried, so nothing can be waiting for them; the next decision queries them.
            waits.clear();
            retirement_waits.clear();
        }
        let writer = StatusWriter {
            context: self,
            desired: &desired,
            waits: &waits,
            gate: gate.as_ref(),
            proof: &proof,
            retirement_waits: &retirement_waits,
        };
        writer.write(&mut builder);
        let requeues = waits.iter().chain(&retirement_waits).map(|wait| wait.requeue);
        let capacity_unknown = builder.with_traffic(|traffic| traffic.is_unfinished())
            && self.servers().is_some_and(capacity::is_unreported);
        let capacity_poll = capacity_unknown.then(|| RequeueWhen::At(text::after(self.now, CAPACITY_POLL_INTERVAL)));
        let deadlines =
            self.contested_until(&builder.status).map(RequeueWhen::At).into_iter().chain(self.unobserved_requeue());
        let deadlines = deadlines.chain(capacity_poll).chain(self.lost_residency_requeue(&builder.status));
        let requeue = self.requeue_after(&builder.status, requeues.chain(deadlines));
        Decision {
            effects: self.effects(&builder.status),
            status: builder.status,
            events: builder.events,
            requeue_after: requeue,
        }
    }

    /// Keeps the previous decision. Only an abort is applied: it does not wait until a person fixes the spec.
    fn decide_stalled(&self, mut builder: DecisionBuilder, cause: &StallCause) -> Decision {
        let StallCause { reason: why, message, owns_rule } = cause;
        let mut effects = Vec::new();
        if *owns_rule {
            self.observe_rewrite(&mut builder);
            self.apply_intent(&mut builder);
            effects.extend(self.rewrite_effect(&builder.status));
        } else {
            self.refuse_intent(&mut builder, message);
        }
        if status::set_stalled(&mut builder.status, self.rollout, why, message, self.now) {
            builder.record_event(true, why, message);
        }
        let requeue = self.requeue_after(&builder.status, self.unobserved_requeue().into_iter());
        Decision { effects, status: builder.status, events: builder.events, requeue_after: requeue }
    }

    /// Applies the pending intent, once.
    fn apply_intent(&self, builder: &mut DecisionBuilder) {
        let PendingIntent::New(intent) = intent::pending_intent(self.rollout) else { return };
        let (spec, now) = (self.spec, self.now);
        let action = builder.with_traffic(|traffic| intent::apply(&intent, traffic, spec, now));
        let requester =
            action.claimed_by.as_ref().map(|requester| format!(" (requested by {requester})")).unwrap_or_default();
        builder.record_event(false, "Intent", format!("{:?}: {}{requester}", action.verb, action.outcome));
        builder.status.last_action = Some(action);
    }

    fn refuse_intent(&self, builder: &mut DecisionBuilder, why: &str) {
        let PendingIntent::New(intent) = intent::pending_intent(self.rollout) else { return };
        let outcome = format!("refused: {why}");
        builder.status.last_action = Some(intent::last_action(&intent, outcome, self.now));
    }

    /// Begins a new revision if another adapter is desired. A former stable that is still being retired skips the
    /// steps.
    fn update_desired(&self, builder: &mut DecisionBuilder, desired: &DesiredAdapter) {
        let DesiredAdapter::Id(id) = desired else { return };
        if builder.status.revision.desired.as_ref() == Some(id) {
            return;
        }
        // A retired candidate never had all requests: it goes through the steps again.
        let mut retired = builder.status.retired.iter();
        let skip_steps =
            retired.any(|entry| entry.id == *id && entry.was_stable && entry.state != RetirementState::Gone);
        let (spec, now) = (self.spec, self.now);
        builder.with_traffic(|traffic| traffic.begin_revision(id, &spec.strategy, skip_steps, now));
    }

    /// Returns why no adapter is desired yet.
    fn unresolved_wait(&self, status: &RolloutStatus, desired: &DesiredAdapter) -> Option<Wait> {
        let DesiredAdapter::Unchanged(why) = desired else { return None };
        if status.revision.desired.is_some() {
            return None;
        }
        self.file_wait().or_else(|| Some(Wait::on_change(reason::NO_MATCH, why.clone())))
    }

    fn residency_gate(&self, status: &RolloutStatus) -> Option<ResidencyGate> {
        let desired = status.revision.desired.as_ref()?;
        Some(ResidencyGate::evaluate(desired, self.spec.residency, self.servers()?, self.content_hash(), self.now))
    }

    fn prove_routers(&self, status: &RolloutStatus) -> RouterProof {
        if let Err(error) = &self.observed.rewrites {
            return RouterProof::unobservable(error, self.now);
        }
        if let Some(wait) = self.terminating_rewrite_wait().filter(|_| !status.weights.desired.is_empty()) {
            return RouterProof::incomplete(0, 0, wait);
        }
        let expected = ExpectedRule {
            model: &self.spec.model,
            rollout_uid: self.uid,
            rewrite_uid: self.rewrite.and_then(|rewrite| rewrite.metadata.uid.as_deref()),
            written: self.rewrite.is_some_and(|rewrite| rewrite::is_written(rewrite, self.desired_rewrite(status))),
            weights: &status.weights,
            shadowed_by: self.shadowing_rewrite(),
        };
        routers::prove(self.spec.router, expected, self.observed.routers.as_deref(), self.now)
    }

    /// Returns the rewrite whose rule takes precedence over ours.
    fn shadowing_rewrite(&self) -> Option<&'a str> {
        let ours = self.rewrite.filter(|rewrite| rewrite::rule_for(&self.spec.model, rewrite).is_some())?;
        let rewrites = self.observed.rewrites.as_deref().ok()?;
        let winner = rewrite_conditions::active_rewrite(&self.spec.model, &self.spec.pool_ref, rewrites)?;
        (!std::ptr::eq(winner, ours)).then_some(winner.metadata.name.as_str())
    }

    fn requeue_after(&self, status: &RolloutStatus, requeues: impl Iterator<Item = RequeueWhen>) -> Option<Duration> {
        let soon = if is_waiting_long(status) {
            SLOW_POLL_INTERVAL.max(self.observed.poll_after)
        } else {
            self.observed.poll_after
        };
        let delay = |requeue| match requeue {
            RequeueWhen::Soon => Some(soon),
            // A little later than the time itself, so that it has certainly passed.
            RequeueWhen::At(at) => Some(text::since(self.now, at) + Duration::from_millis(1)),
            RequeueWhen::OnChange => None,
        };
        requeues.filter_map(delay).min()
    }
}

/// Returns whether the step has waited for servers or routers for longer than [`FAST_POLL_WINDOW`].
fn is_waiting_long(status: &RolloutStatus) -> bool {
    let waited = status.step.as_ref().and_then(|step| u64::try_from(step.observed_millis).ok());
    waited.is_some_and(|millis| Duration::from_millis(millis) > FAST_POLL_WINDOW)
}

/// Returns whether the status holds nothing: it is new, or it was lost.
fn is_uninitialized(status: &RolloutStatus) -> bool {
    status.revision.number == 0 && status.revision.stable.is_none() && status.weights.desired.is_empty()
}

/// Returns the group of the rewrite that the status names.
fn recorded_group(rollout: &Rollout, name: &str) -> Option<RewriteGroup> {
    let rewrite = rollout.status.as_ref()?.rewrite.as_ref().filter(|rewrite| rewrite.name == name)?;
    RewriteGroup::from_name(&rewrite.group)
}
