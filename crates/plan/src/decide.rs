//! One decision: what is known, what was asked, what is wanted, who may load it, how much traffic it gets, what goes,
//! and then what has to be written for that.

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

/// How soon what could not be observed is looked at again where nothing waits for it.
const UNOBSERVED_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A step that has waited for servers or routers for longer than this looks at them less often.
const FAST_POLL_WINDOW: Duration = Duration::from_secs(10);
/// How often that is then: whatever is wrong takes longer to mend.
const SLOW_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How soon servers that have not told how much room they have are asked again while a rollout goes on.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Parts of a time over which Rollouts are spread.
const JITTER_BUCKETS: u32 = 64;

/// What a decision is about.
#[derive(Debug, Clone, Copy)]
pub struct DecisionInput<'a> {
    /// Spec, metadata and the previous status.
    pub rollout: &'a Rollout,
    /// The world.
    pub observed: &'a ObservedState,
}

/// What is to be done: write the status, then the effects in order up to the first that fails, then tell people.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The status from now on.
    pub status: RolloutStatus,
    /// Writes.
    pub effects: Vec<Effect>,
    /// What people are told.
    pub events: Vec<RolloutEvent>,
    /// When to look again, if nothing changes before.
    pub requeue_after: Option<Duration>,
}

/// Decides.
pub fn decide(input: &DecisionInput<'_>, now: Timestamp) -> Decision {
    let case = DecisionContext::new(input, now);
    let previous = input.rollout.status.clone().unwrap_or_default();
    let draft = DecisionBuilder { status: previous.clone(), events: Vec::new(), newly_retired: Vec::new() };
    let decision = if input.rollout.metadata.deletion_timestamp.is_some() {
        case.finalize(draft)
    } else if let Some(objection) = case.stall_cause() {
        case.decide_stalled(draft, &objection)
    } else {
        case.decide_active(draft)
    };
    status::throttle(&previous, decision, status::file_change_due(&case), now)
}

/// Why nothing new may begin.
struct StallCause {
    reason: &'static str,
    message: String,
    /// Whether the rule is the Rollout's own all the same: what was written stays, and an abort is obeyed.
    owns_rule: bool,
}

/// A decision that is being made.
#[derive(Debug)]
pub(crate) struct DecisionBuilder {
    /// The status from now on.
    pub(crate) status: RolloutStatus,
    /// What people are told.
    pub(crate) events: Vec<RolloutEvent>,
    /// Ids that traffic left.
    pub(crate) newly_retired: Vec<NewlyRetired>,
}

impl DecisionBuilder {
    /// Lets the traffic machine act.
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

/// Everything that the steps of one decision look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecisionContext<'a> {
    pub(crate) rollout: &'a Rollout,
    pub(crate) spec: &'a RolloutSpec,
    pub(crate) observed: &'a ObservedState,
    pub(crate) now: Timestamp,
    /// The Rollout's UID; its name where nobody gave it one.
    uid: &'a str,
    /// The rewrite that carries the weights, where it exists.
    rewrite: Option<&'a InferenceModelRewrite>,
}

impl<'a> DecisionContext<'a> {
    fn new(input: &DecisionInput<'a>, now: Timestamp) -> Self {
        let (rollout, world) = (input.rollout, input.observed);
        let uid = rollout.metadata.uid.as_deref().unwrap_or(&rollout.metadata.name);
        let case = Self { rollout, spec: &rollout.spec, observed: world, now, uid, rewrite: None };
        let rewrites = world.rewrites.as_ref().ok();
        let kept = recorded_group(rollout, case.rewrite_name());
        Self { rewrite: rewrites.and_then(|rewrites| rewrite::find(case.rewrite_name(), kept, rewrites)), ..case }
    }

    /// A part of `whole` that is always the same for this Rollout, and another one for others.
    pub(crate) fn jitter(&self, whole: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.uid.hash(&mut hasher);
        let part = u32::try_from(hasher.finish() % u64::from(JITTER_BUCKETS)).unwrap_or_default();
        whole * part / JITTER_BUCKETS
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

    /// The adapters file, or why there is none.
    pub(crate) fn adapters_file(&self) -> Result<&'a AdaptersFile, String> {
        let name = &self.spec.adapters_ref.name;
        match &self.observed.adapters {
            Ok(Some(adapters)) => adapters.file.as_ref().map_err(|error| format!("the adapters file {name}, {error}")),
            Ok(None) => Err(format!("the adapters file {name} does not exist: make it, or mend spec.adaptersRef")),
            Err(error) => Err(format!("the adapters file {name} cannot be read: {error}")),
        }
    }

    /// Why the adapters file cannot be used, where it cannot.
    fn file_wait(&self) -> Option<Wait> {
        let why = self.adapters_file().err()?;
        Some(match &self.observed.adapters {
            Err(ObserveError::Unavailable(_) | ObserveError::NotAttempted) => Wait::soon(reason::UNAVAILABLE, why),
            Err(ObserveError::Invalid(_)) | Ok(_) => Wait::for_fix(self.now, why),
        })
    }

    /// What could not be observed now is looked at again, also where nothing waits for it.
    fn unobserved_requeue(&self) -> Option<RequeueWhen> {
        let world = self.observed;
        let errors = [
            world.adapters.as_ref().err(),
            world.rewrites.as_ref().err(),
            world.servers.as_ref().err(),
            world.other_pool_servers.as_ref().err(),
            world.routers.as_ref().err(),
            world.rollouts.as_ref().err(),
        ];
        let unseen = errors.into_iter().flatten().any(|error| matches!(error, ObserveError::Unavailable(_)));
        unseen.then(|| RequeueWhen::At(text::after(self.now, UNOBSERVED_POLL_INTERVAL)))
    }

    /// A server that lacks what has weight gets it back without anybody telling: its pod may be Ready all the time.
    fn lost_residency_requeue(&self, status: &RolloutStatus) -> Option<RequeueWhen> {
        let servers = self.servers()?;
        let lost =
            status.weights.desired.iter().any(|target| !residency::servers_lacking(&target.id, servers).is_empty());
        lost.then(|| RequeueWhen::At(text::after(self.now, SLOW_POLL_INTERVAL)))
    }

    /// What is not there, or not as it has to be, although something is to be done by it.
    fn invalid_input_waits(&self) -> impl Iterator<Item = Wait> {
        let rewrites = self.observed.rewrites.as_ref().err().map(|error| ("the rewrites cannot be read", error));
        let servers =
            self.observed.servers.as_ref().err().map(|error| ("the servers of the pool cannot be listed", error));
        let unseen = rewrites.into_iter().chain(servers);
        let waits = unseen.map(|(what, error)| Wait::while_unobservable(what, error, self.now)).chain(self.file_wait());
        waits.filter(|wait| wait.reason == reason::INVALID)
    }

    pub(crate) fn servers(&self) -> Option<&'a [ObservedServer]> {
        self.observed.servers.as_deref().ok()
    }

    /// Every other Rollout; nobody where they could not be listed.
    pub(crate) fn other_rollouts(&self) -> impl Iterator<Item = &'a Rollout> {
        let (rollout, all) = (self.rollout, self.observed.rollouts.as_deref().unwrap_or_default());
        all.iter().map(Arc::as_ref).filter(move |other| !conflict::is_same_rollout(rollout, other))
    }

    /// What the adapters file was when this was decided.
    pub(crate) fn observed_adapters(&self) -> Option<ObservedAdapters> {
        let observed = |adapters: &AdaptersConfigMap| ObservedAdapters {
            resource_version: adapters.version.clone(),
            hash: adapters.hash.clone(),
        };
        self.adapters().map(observed)
    }

    /// Whether the world was asked: an abort does not wait for it.
    pub(crate) fn is_observation_attempted(&self) -> bool {
        self.observed.servers != Err(ObserveError::NotAttempted)
    }

    fn is_fully_observed(&self) -> bool {
        let world = self.observed;
        self.adapters().is_some() && world.rewrites.is_ok() && world.servers.is_ok() && world.routers.is_ok()
    }

    /// Why nothing new may begin.
    fn stall_cause(&self) -> Option<StallCause> {
        if let Some(error) = self.spec.validate().first() {
            let message = format!("{}: {}", error.path, error.message);
            return Some(StallCause { reason: reason::INVALID, message, owns_rule: true });
        }
        let conflict =
            |message, leaves_the_rule| StallCause { reason: reason::CONFLICT, message, owns_rule: leaves_the_rule };
        // Whoever has begun has weights in the rewrite, which nobody else looks after.
        let begun = || self.rewrite.is_some_and(|rewrite| rewrite::stamped_sequence(rewrite, self.uid).is_some());
        let other = match &self.observed.rollouts {
            Ok(rollouts) => conflict::find_conflict(self.rollout, rollouts).map(|other| {
                let leaves_the_rule = matches!(other, Conflict::SameAdapters(_)) && begun();
                conflict(other.into_message(), leaves_the_rule)
            }),
            // What was so when they could be listed is so until they can be.
            Err(_) => self.previous_conflict().map(|message| conflict(message, begun())),
        };
        other.or_else(|| self.pool_mismatch().map(|message| conflict(message, false)))
    }

    fn previous_conflict(&self) -> Option<String> {
        let conditions = &self.rollout.status.as_ref()?.conditions;
        let stalled = conditions.iter().find(|condition| condition.type_ == condition_type::STALLED)?;
        (stalled.status == ConditionStatus::True && stalled.reason == reason::CONFLICT).then(|| stalled.message.clone())
    }

    fn decide_active(&self, mut draft: DecisionBuilder) -> Decision {
        let wish = desired::resolve(&self.spec.adapter, self.adapters_file());
        if is_uninitialized(&draft.status)
            && let Some(wait) = self.adopt(&mut draft, &wish)
        {
            return self.wait_for_adoption(draft, &wait);
        }
        self.observe_rewrite(&mut draft);
        self.record_listings(&mut draft.status);
        self.apply_intent(&mut draft);
        self.update_desired(&mut draft, &wish);
        let obstacle = self.double_rewrite(&draft.status).or_else(|| self.admit(&mut draft));
        let (gate, proof) = (self.residency_gate(&draft.status), self.prove_routers(&draft.status));
        let scene = traffic::TrafficInputs {
            now: self.now,
            paused: self.spec.paused,
            strategy: &self.spec.strategy,
            observation_attempted: self.is_observation_attempted(),
            fully_observed: self.is_fully_observed(),
            servers: self.servers(),
            gate: gate.as_ref(),
            residency_wait: obstacle.as_ref(),
            proof: &proof,
        };
        let mut waits = draft.with_traffic(|traffic| traffic.advance(scene));
        if waits.is_empty() {
            waits.extend(obstacle);
            waits.extend(self.unresolved_wait(&draft.status, &wish));
        }
        let blind = self
            .invalid_input_waits()
            .filter(|wait| !waits.iter().any(|other| other.message.starts_with(&wait.message)));
        waits.splice(0..0, blind.collect::<Vec<_>>());
        let proof = self.prove_routers(&draft.status);
        if waits.is_empty()
            && let Some(other) = &proof.shadowed_by
        {
            waits.push(Wait::on_change(reason::SHADOWED_BY, routers::shadowed_message(other)));
        }
        let mut retiring = retire::advance_all(self, &mut draft, &proof);
        if !self.is_observation_attempted() {
            // Whoever was not asked is nothing to wait for: they are asked next.
            waits.clear();
            retiring.clear();
        }
        let report = StatusWriter {
            context: self,
            desired: &wish,
            waits: &waits,
            gate: gate.as_ref(),
            proof: &proof,
            retirement_waits: &retiring,
        };
        report.write(&mut draft);
        let agains = waits.iter().chain(&retiring).map(|wait| wait.requeue);
        let untold = draft.with_traffic(|traffic| traffic.is_unfinished())
            && self.servers().is_some_and(capacity::is_unreported);
        let room = untold.then(|| RequeueWhen::At(text::after(self.now, CAPACITY_POLL_INTERVAL)));
        let ends =
            self.contested_until(&draft.status).map(RequeueWhen::At).into_iter().chain(self.unobserved_requeue());
        let ends = ends.chain(room).chain(self.lost_residency_requeue(&draft.status));
        let requeue = self.requeue_after(&draft.status, agains.chain(ends));
        Decision {
            effects: self.effects(&draft.status),
            status: draft.status,
            events: draft.events,
            requeue_after: requeue,
        }
    }

    /// Nothing moves but what was decided before; and an abort, which waits for nobody's mending of the spec.
    fn decide_stalled(&self, mut draft: DecisionBuilder, objection: &StallCause) -> Decision {
        let StallCause { reason: why, message, owns_rule: leaves_the_rule } = objection;
        let mut effects = Vec::new();
        if *leaves_the_rule {
            self.observe_rewrite(&mut draft);
            self.apply_intent(&mut draft);
            effects.extend(self.rewrite_effect(&draft.status));
        } else {
            self.refuse_intent(&mut draft, message);
        }
        if status::set_stalled(&mut draft.status, self.rollout, why, message, self.now) {
            draft.record_event(true, why, message);
        }
        let requeue = self.requeue_after(&draft.status, self.unobserved_requeue().into_iter());
        Decision { effects, status: draft.status, events: draft.events, requeue_after: requeue }
    }

    /// Does what a person asked for, once.
    fn apply_intent(&self, draft: &mut DecisionBuilder) {
        let PendingIntent::New(intent) = intent::pending_intent(self.rollout) else { return };
        let (spec, now) = (self.spec, self.now);
        let action = draft.with_traffic(|traffic| intent::apply(&intent, traffic, spec, now));
        let who = action.claimed_by.as_ref().map(|who| format!(" (asked by {who})")).unwrap_or_default();
        draft.record_event(false, "Intent", format!("{:?}: {}{who}", action.verb, action.outcome));
        draft.status.last_action = Some(action);
    }

    fn refuse_intent(&self, draft: &mut DecisionBuilder, why: &str) {
        let PendingIntent::New(intent) = intent::pending_intent(self.rollout) else { return };
        let outcome = format!("refused: {why}");
        draft.status.last_action = Some(intent::last_action(&intent, outcome, self.now));
    }

    /// Begins a new revision where another adapter is wanted. One that was stable and is on its way out comes back at once.
    fn update_desired(&self, draft: &mut DecisionBuilder, wish: &DesiredAdapter) {
        let DesiredAdapter::Id(id) = wish else { return };
        if draft.status.revision.desired.as_ref() == Some(id) {
            return;
        }
        // A candidate that was taken out never had everything: it comes by steps again.
        let mut retired = draft.status.retired.iter();
        let at_once = retired.any(|entry| entry.id == *id && entry.was_stable && entry.state != RetirementState::Gone);
        let (spec, now) = (self.spec, self.now);
        draft.with_traffic(|traffic| traffic.begin_revision(id, &spec.strategy, at_once, now));
    }

    /// Why nothing is wanted yet.
    fn unresolved_wait(&self, status: &RolloutStatus, wish: &DesiredAdapter) -> Option<Wait> {
        let DesiredAdapter::Unchanged(why) = wish else { return None };
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
        let claim = ExpectedRule {
            model: &self.spec.model,
            rollout_uid: self.uid,
            rewrite_uid: self.rewrite.and_then(|rewrite| rewrite.metadata.uid.as_deref()),
            written: self.rewrite.is_some_and(|rewrite| rewrite::is_written(rewrite, self.desired_rewrite(status))),
            weights: &status.weights,
            shadowed_by: self.shadowing_rewrite(),
        };
        routers::prove(self.spec.router, claim, self.observed.routers.as_deref(), self.now)
    }

    /// The rewrite whose rule goes before the one that we have.
    fn shadowing_rewrite(&self) -> Option<&'a str> {
        let ours = self.rewrite.filter(|rewrite| rewrite::rule_for(&self.spec.model, rewrite).is_some())?;
        let rewrites = self.observed.rewrites.as_deref().ok()?;
        let winner = rewrite_conditions::active_rewrite(&self.spec.model, &self.spec.pool_ref, rewrites)?;
        (!std::ptr::eq(winner, ours)).then_some(winner.metadata.name.as_str())
    }

    fn requeue_after(&self, status: &RolloutStatus, agains: impl Iterator<Item = RequeueWhen>) -> Option<Duration> {
        let soon = if is_waiting_long(status) {
            SLOW_POLL_INTERVAL.max(self.observed.poll_after)
        } else {
            self.observed.poll_after
        };
        let delay = |again| match again {
            RequeueWhen::Soon => Some(soon),
            // A little later than the time itself: then it is over for sure.
            RequeueWhen::At(at) => Some(text::since(self.now, at) + Duration::from_millis(1)),
            RequeueWhen::OnChange => None,
        };
        agains.filter_map(delay).min()
    }
}

/// Whether the step has been waiting for servers or routers for so long that whatever is wrong will not be over at once.
fn is_waiting_long(status: &RolloutStatus) -> bool {
    let waited = status.step.as_ref().and_then(|step| u64::try_from(step.observed_millis).ok());
    waited.is_some_and(|millis| Duration::from_millis(millis) > FAST_POLL_WINDOW)
}

/// A status that knows nothing: the first time, or lost.
fn is_uninitialized(status: &RolloutStatus) -> bool {
    status.revision.number == 0 && status.revision.stable.is_none() && status.weights.desired.is_empty()
}

/// The group of the rewrite that the Rollout works with already.
fn recorded_group(rollout: &Rollout, name: &str) -> Option<RewriteGroup> {
    let rewrite = rollout.status.as_ref()?.rewrite.as_ref().filter(|rewrite| rewrite.name == name)?;
    RewriteGroup::from_name(&rewrite.group)
}
