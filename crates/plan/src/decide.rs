//! One decision: what is known, what was asked, what is wanted, who may load it, how much traffic it gets, what goes,
//! and then what has to be written for that.

mod admit;
mod adopt;
mod contest;
mod depart;
mod relisted;
mod rivals;
#[cfg(test)]
mod tests;
mod writes;

pub use depart::farewell;

use crate::{
    acceptance, capacity,
    conflict::{self, Conflict},
    desired::{self, Wish},
    effect::Effect,
    event::Event,
    intent::{self, Request},
    observed::{Adapters, Observed, Server, Unseen},
    report::{self, Report},
    residency::{self, Gate},
    retire, rewrite,
    routers::{self, Claim, Proof},
    text,
    traffic::{self, Left, Traffic},
    wait::{Again, Wait},
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
const AWAY: Duration = Duration::from_secs(1);

/// A step that has waited for servers or routers for longer than this looks at them less often.
const QUICK: Duration = Duration::from_secs(10);
/// How often that is then: whatever is wrong takes longer to mend.
const SLOW: Duration = Duration::from_secs(5);

/// How soon servers that have not told how much room they have are asked again while a rollout goes on.
const UNTOLD: Duration = Duration::from_secs(5);

/// Parts of a time over which Rollouts are spread.
const SHARES: u32 = 64;

/// What a decision is about.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Spec, metadata and the previous status.
    pub rollout: &'a Rollout,
    /// The world.
    pub world: &'a Observed,
}

/// What is to be done: write the status, then the effects in order up to the first that fails, then tell people.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The status from now on.
    pub status: RolloutStatus,
    /// Writes.
    pub effects: Vec<Effect>,
    /// What people are told.
    pub events: Vec<Event>,
    /// When to look again, if nothing changes before.
    pub requeue: Option<Duration>,
}

/// Decides.
pub fn decide(input: &Input<'_>, now: Timestamp) -> Decision {
    let case = Case::new(input, now);
    let previous = input.rollout.status.clone().unwrap_or_default();
    let draft = Draft { status: previous.clone(), events: Vec::new(), left: Vec::new() };
    let decision = if input.rollout.metadata.deletion_timestamp.is_some() {
        case.depart(draft)
    } else if let Some(objection) = case.objection() {
        case.refuse(draft, &objection)
    } else {
        case.run(draft)
    };
    report::settle(&previous, decision, report::file_due(&case), now)
}

/// Why nothing new may begin.
struct Objection {
    reason: &'static str,
    message: String,
    /// Whether the rule is the Rollout's own all the same: what was written stays, and an abort is obeyed.
    leaves_the_rule: bool,
}

/// A decision that is being made.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The status from now on.
    pub(crate) status: RolloutStatus,
    /// What people are told.
    pub(crate) events: Vec<Event>,
    /// Ids that traffic left.
    pub(crate) left: Vec<Left>,
}

impl Draft {
    /// Lets the traffic machine act.
    fn traffic<R>(&mut self, act: impl FnOnce(&mut Traffic<'_>) -> R) -> R {
        let mut traffic = Traffic::of(&mut self.status);
        let result = act(&mut traffic);
        self.events.append(&mut traffic.events);
        self.left.append(&mut traffic.left);
        result
    }

    pub(crate) fn say(&mut self, warning: bool, reason: &str, message: impl Into<String>) {
        self.events.push(Event { warning, reason: reason.to_owned(), message: message.into() });
    }
}

/// Everything that the steps of one decision look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) rollout: &'a Rollout,
    pub(crate) spec: &'a RolloutSpec,
    pub(crate) world: &'a Observed,
    pub(crate) now: Timestamp,
    /// The Rollout's UID; its name where nobody gave it one.
    uid: &'a str,
    /// The rewrite that carries the weights, where it exists.
    rewrite: Option<&'a InferenceModelRewrite>,
}

impl<'a> Case<'a> {
    fn new(input: &Input<'a>, now: Timestamp) -> Self {
        let (rollout, world) = (input.rollout, input.world);
        let uid = rollout.metadata.uid.as_deref().unwrap_or(&rollout.metadata.name);
        let case = Self { rollout, spec: &rollout.spec, world, now, uid, rewrite: None };
        let rewrites = world.rewrites.as_ref().ok();
        let kept = kept_group(rollout, case.rewrite_name());
        Self { rewrite: rewrites.and_then(|rewrites| rewrite::find(case.rewrite_name(), kept, rewrites)), ..case }
    }

    /// A part of `whole` that is always the same for this Rollout, and another one for others.
    pub(crate) fn spread(&self, whole: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.uid.hash(&mut hasher);
        let part = u32::try_from(hasher.finish() % u64::from(SHARES)).unwrap_or_default();
        whole * part / SHARES
    }

    fn rewrite_name(&self) -> &'a str {
        let reference = self.spec.rewrite_ref.as_ref();
        reference.map_or(&self.rollout.metadata.name, |reference| &reference.name)
    }

    pub(crate) fn adapters(&self) -> Option<&'a Adapters> {
        self.world.adapters.as_ref().ok().and_then(Option::as_ref)
    }

    pub(crate) fn content(&self) -> Option<&'a ContentHash> {
        self.adapters().map(|adapters| &adapters.hash)
    }

    /// The adapters file, or why there is none.
    pub(crate) fn file(&self) -> Result<&'a AdaptersFile, String> {
        let name = &self.spec.adapters_ref.name;
        match &self.world.adapters {
            Ok(Some(adapters)) => adapters.file.as_ref().map_err(|error| format!("the adapters file {name}, {error}")),
            Ok(None) => Err(format!("the adapters file {name} does not exist: make it, or mend spec.adaptersRef")),
            Err(error) => Err(format!("the adapters file {name} cannot be read: {error}")),
        }
    }

    /// Why the adapters file cannot be used, where it cannot.
    fn file_wait(&self) -> Option<Wait> {
        let why = self.file().err()?;
        Some(match &self.world.adapters {
            Err(Unseen::Unavailable(_) | Unseen::NotAsked) => Wait::soon(reason::UNAVAILABLE, why),
            Err(Unseen::Invalid(_)) | Ok(_) => Wait::for_mending(self.now, why),
        })
    }

    /// What could not be observed now is looked at again, also where nothing waits for it.
    fn look_again(&self) -> Option<Again> {
        let world = self.world;
        let errors = [
            world.adapters.as_ref().err(),
            world.rewrites.as_ref().err(),
            world.servers.as_ref().err(),
            world.sharers.as_ref().err(),
            world.routers.as_ref().err(),
            world.rollouts.as_ref().err(),
        ];
        let unseen = errors.into_iter().flatten().any(|error| matches!(error, Unseen::Unavailable(_)));
        unseen.then(|| Again::At(text::after(self.now, AWAY)))
    }

    /// A server that lacks what has weight gets it back without anybody telling: its pod may be Ready all the time.
    fn look_for_the_lost(&self, status: &RolloutStatus) -> Option<Again> {
        let servers = self.servers()?;
        let lost = status.weights.desired.iter().any(|target| !residency::lacking(&target.id, servers).is_empty());
        lost.then(|| Again::At(text::after(self.now, SLOW)))
    }

    /// What is not there, or not as it has to be, although something is to be done by it.
    fn blind(&self) -> impl Iterator<Item = Wait> {
        let rewrites = self.world.rewrites.as_ref().err().map(|error| ("the rewrites cannot be read", error));
        let servers =
            self.world.servers.as_ref().err().map(|error| ("the servers of the pool cannot be listed", error));
        let unseen = rewrites.into_iter().chain(servers);
        let waits = unseen.map(|(what, error)| Wait::for_sight(what, error, self.now)).chain(self.file_wait());
        waits.filter(|wait| wait.reason == reason::INVALID)
    }

    pub(crate) fn servers(&self) -> Option<&'a [Server]> {
        self.world.servers.as_deref().ok()
    }

    /// Every other Rollout; nobody where they could not be listed.
    pub(crate) fn others(&self) -> impl Iterator<Item = &'a Rollout> {
        let (rollout, all) = (self.rollout, self.world.rollouts.as_deref().unwrap_or_default());
        all.iter().map(Arc::as_ref).filter(move |other| !conflict::is_same(rollout, other))
    }

    /// What the adapters file was when this was decided.
    pub(crate) fn observed_adapters(&self) -> Option<ObservedAdapters> {
        let observed = |adapters: &Adapters| ObservedAdapters {
            resource_version: adapters.version.clone(),
            hash: adapters.hash.clone(),
        };
        self.adapters().map(observed)
    }

    /// Whether the world was asked: an abort does not wait for it.
    pub(crate) fn is_asked(&self) -> bool {
        self.world.servers != Err(Unseen::NotAsked)
    }

    fn is_observed(&self) -> bool {
        let world = self.world;
        self.adapters().is_some() && world.rewrites.is_ok() && world.servers.is_ok() && world.routers.is_ok()
    }

    /// Why nothing new may begin.
    fn objection(&self) -> Option<Objection> {
        if let Some(error) = self.spec.validate().first() {
            let message = format!("{}: {}", error.path, error.message);
            return Some(Objection { reason: reason::INVALID, message, leaves_the_rule: true });
        }
        let conflict = |message, leaves_the_rule| Objection { reason: reason::CONFLICT, message, leaves_the_rule };
        // Whoever has begun has weights in the rewrite, which nobody else looks after.
        let begun = || self.rewrite.is_some_and(|rewrite| rewrite::stamp(rewrite, self.uid).is_some());
        let other = match &self.world.rollouts {
            Ok(rollouts) => conflict::conflict(self.rollout, rollouts).map(|other| {
                let leaves_the_rule = matches!(other, Conflict::SameAdapters(_)) && begun();
                conflict(other.words(), leaves_the_rule)
            }),
            // What was so when they could be listed is so until they can be.
            Err(_) => self.conflict_so_far().map(|message| conflict(message, begun())),
        };
        other.or_else(|| self.other_pool().map(|message| conflict(message, false)))
    }

    fn conflict_so_far(&self) -> Option<String> {
        let conditions = &self.rollout.status.as_ref()?.conditions;
        let stalled = conditions.iter().find(|condition| condition.type_ == condition_type::STALLED)?;
        (stalled.status == ConditionStatus::True && stalled.reason == reason::CONFLICT).then(|| stalled.message.clone())
    }

    fn run(&self, mut draft: Draft) -> Decision {
        let wish = desired::resolve(&self.spec.adapter, self.file());
        if is_blank(&draft.status)
            && let Some(wait) = self.adopt(&mut draft, &wish)
        {
            return self.wait_for_adoption(draft, &wait);
        }
        self.compare_rewrite(&mut draft);
        self.note_listings(&mut draft.status);
        self.obey(&mut draft);
        self.want(&mut draft, &wish);
        let obstacle = self.double_rewrite(&draft.status).or_else(|| self.admit(&mut draft));
        let (gate, proof) = (self.gate(&draft.status), self.prove(&draft.status));
        let scene = traffic::Scene {
            now: self.now,
            paused: self.spec.paused,
            strategy: &self.spec.strategy,
            asked: self.is_asked(),
            observed: self.is_observed(),
            servers: self.servers(),
            gate: gate.as_ref(),
            obstacle: obstacle.as_ref(),
            proof: &proof,
        };
        let mut waits = draft.traffic(|traffic| traffic.advance(scene));
        if waits.is_empty() {
            waits.extend(obstacle);
            waits.extend(self.unresolved(&draft.status, &wish));
        }
        let blind = self.blind().filter(|wait| !waits.iter().any(|other| other.message.starts_with(&wait.message)));
        waits.splice(0..0, blind.collect::<Vec<_>>());
        let proof = self.prove(&draft.status);
        if waits.is_empty()
            && let Some(other) = &proof.shadowed_by
        {
            waits.push(Wait::on_change(reason::SHADOWED_BY, routers::shadowed(other)));
        }
        let mut retiring = retire::go_on(self, &mut draft, &proof);
        if !self.is_asked() {
            // Whoever was not asked is nothing to wait for: they are asked next.
            waits.clear();
            retiring.clear();
        }
        let report =
            Report { case: self, wish: &wish, waits: &waits, gate: gate.as_ref(), proof: &proof, retiring: &retiring };
        report.write(&mut draft);
        let agains = waits.iter().chain(&retiring).map(|wait| wait.again);
        let untold =
            draft.traffic(|traffic| traffic.is_unfinished()) && self.servers().is_some_and(capacity::is_untold);
        let room = untold.then(|| Again::At(text::after(self.now, UNTOLD)));
        let ends = self.contest_end(&draft.status).map(Again::At).into_iter().chain(self.look_again());
        let ends = ends.chain(room).chain(self.look_for_the_lost(&draft.status));
        let requeue = self.requeue(&draft.status, agains.chain(ends));
        Decision { effects: self.effects(&draft.status), status: draft.status, events: draft.events, requeue }
    }

    /// Nothing moves but what was decided before; and an abort, which waits for nobody's mending of the spec.
    fn refuse(&self, mut draft: Draft, objection: &Objection) -> Decision {
        let Objection { reason: why, message, leaves_the_rule } = objection;
        let mut effects = Vec::new();
        if *leaves_the_rule {
            self.compare_rewrite(&mut draft);
            self.obey(&mut draft);
            effects.extend(self.rewrite_effect(&draft.status));
        } else {
            self.refuse_intent(&mut draft, message);
        }
        if report::stall(&mut draft.status, self.rollout, why, message, self.now) {
            draft.say(true, why, message);
        }
        let requeue = self.requeue(&draft.status, self.look_again().into_iter());
        Decision { effects, status: draft.status, events: draft.events, requeue }
    }

    /// Does what a person asked for, once.
    fn obey(&self, draft: &mut Draft) {
        let Request::New(intent) = intent::request(self.rollout) else { return };
        let (spec, now) = (self.spec, self.now);
        let action = draft.traffic(|traffic| intent::consume(&intent, traffic, spec, now));
        let who = action.claimed_by.as_ref().map(|who| format!(" (asked by {who})")).unwrap_or_default();
        draft.say(false, "Intent", format!("{:?}: {}{who}", action.verb, action.outcome));
        draft.status.last_action = Some(action);
    }

    fn refuse_intent(&self, draft: &mut Draft, why: &str) {
        let Request::New(intent) = intent::request(self.rollout) else { return };
        let outcome = format!("refused: {why}");
        draft.status.last_action = Some(intent::answer(&intent, outcome, self.now));
    }

    /// Begins a new revision where another adapter is wanted. One that was stable and is on its way out comes back at once.
    fn want(&self, draft: &mut Draft, wish: &Wish) {
        let Wish::Id(id) = wish else { return };
        if draft.status.revision.desired.as_ref() == Some(id) {
            return;
        }
        // A candidate that was taken out never had everything: it comes by steps again.
        let mut retired = draft.status.retired.iter();
        let at_once = retired.any(|entry| entry.id == *id && entry.was_stable && entry.state != RetirementState::Gone);
        let (spec, now) = (self.spec, self.now);
        draft.traffic(|traffic| traffic.begin(id, &spec.strategy, at_once, now));
    }

    /// Why nothing is wanted yet.
    fn unresolved(&self, status: &RolloutStatus, wish: &Wish) -> Option<Wait> {
        let Wish::Unchanged(why) = wish else { return None };
        if status.revision.desired.is_some() {
            return None;
        }
        self.file_wait().or_else(|| Some(Wait::on_change(reason::NO_MATCH, why.clone())))
    }

    fn gate(&self, status: &RolloutStatus) -> Option<Gate> {
        let desired = status.revision.desired.as_ref()?;
        Some(Gate::look(desired, self.spec.residency, self.servers()?, self.content(), self.now))
    }

    fn prove(&self, status: &RolloutStatus) -> Proof {
        if let Err(error) = &self.world.rewrites {
            return Proof::unseen(error, self.now);
        }
        if let Some(wait) = self.rewrite_on_its_way_out().filter(|_| !status.weights.desired.is_empty()) {
            return Proof::waits(0, 0, wait);
        }
        let claim = Claim {
            model: &self.spec.model,
            rollout_uid: self.uid,
            rewrite_uid: self.rewrite.and_then(|rewrite| rewrite.metadata.uid.as_deref()),
            written: self.rewrite.is_some_and(|rewrite| rewrite::is_written(rewrite, self.wanted(status))),
            weights: &status.weights,
            shadow: self.shadow(),
        };
        routers::prove(self.spec.router, claim, self.world.routers.as_deref(), self.now)
    }

    /// The rewrite whose rule goes before the one that we have.
    fn shadow(&self) -> Option<&'a str> {
        let ours = self.rewrite.filter(|rewrite| rewrite::rule_for(&self.spec.model, rewrite).is_some())?;
        let rewrites = self.world.rewrites.as_deref().ok()?;
        let winner = acceptance::winner(&self.spec.model, &self.spec.pool_ref, rewrites)?;
        (!std::ptr::eq(winner, ours)).then_some(winner.metadata.name.as_str())
    }

    fn requeue(&self, status: &RolloutStatus, agains: impl Iterator<Item = Again>) -> Option<Duration> {
        let soon = if is_slow(status) { SLOW.max(self.world.news_in) } else { self.world.news_in };
        let delay = |again| match again {
            Again::Soon => Some(soon),
            // A little later than the time itself: then it is over for sure.
            Again::At(at) => Some(text::since(self.now, at) + Duration::from_millis(1)),
            Again::OnChange => None,
        };
        agains.filter_map(delay).min()
    }
}

/// Whether the step has been waiting for servers or routers for so long that whatever is wrong will not be over at once.
fn is_slow(status: &RolloutStatus) -> bool {
    let waited = status.step.as_ref().and_then(|step| u64::try_from(step.observed_millis).ok());
    waited.is_some_and(|millis| Duration::from_millis(millis) > QUICK)
}

/// A status that knows nothing: the first time, or lost.
fn is_blank(status: &RolloutStatus) -> bool {
    status.revision.number == 0 && status.revision.stable.is_none() && status.weights.desired.is_empty()
}

/// The group of the rewrite that the Rollout works with already.
fn kept_group(rollout: &Rollout, name: &str) -> Option<RewriteGroup> {
    let rewrite = rollout.status.as_ref()?.rewrite.as_ref().filter(|rewrite| rewrite.name == name)?;
    RewriteGroup::from_name(&rewrite.group)
}
