//! One decision: what is known, what was asked, what is wanted, who may load it, how much traffic it gets, what goes,
//! and then what has to be written for that.

#[cfg(test)]
mod tests;

use crate::{
    adoption::{self, Adoption},
    conflict,
    desired::{self, Wish},
    effect::Effect,
    event::Event,
    intent::{self, Request},
    observed::{Adapters, Observed, Server},
    operator_key, pilot,
    report::{self, Report},
    residency::Gate,
    retire,
    rewrite::{self, Wanted},
    routers::{self, Claim, Proof},
    text,
    traffic::{self, Traffic},
    wait::{Again, Wait},
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, ContentHash},
    condition::reason,
    names::AdapterId,
    operator_key::{OperatorKey, Pilot, matches_pattern},
    rewrite::InferenceModelRewrite,
    rollout::{
        Rollout, RolloutStatus,
        spec::RolloutSpec,
        status::{ObservedAdapters, Rejected, Retired, RetirementState, RewriteIdentity},
    },
};
use std::time::Duration;

/// How soon servers and routers that are on their way are looked at again.
const POLL: Duration = Duration::from_millis(250);
/// So many foreign edits within [`CONTEST_WINDOW`] are a contest.
const CONTEST: usize = 3;
/// See [`CONTEST`].
const CONTEST_WINDOW: Duration = Duration::from_mins(5);
/// How slowly a contested rewrite is put back.
const CONTEST_PACE: Duration = Duration::from_mins(1);

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
    let decision = match case.objection() {
        Some(objection) => case.refuse(previous.clone(), objection),
        None => case.run(previous.clone()),
    };
    report::settle(&previous, decision, now)
}

/// Everything that the steps of one decision look at.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) rollout: &'a Rollout,
    pub(crate) spec: &'a RolloutSpec,
    pub(crate) world: &'a Observed,
    pub(crate) now: Timestamp,
    /// The Rollout's UID; its name where nobody gave it one.
    pub(crate) uid: &'a str,
    pub(crate) rewrite: Option<&'a InferenceModelRewrite>,
}

impl<'a> Case<'a> {
    fn new(input: &Input<'a>, now: Timestamp) -> Self {
        let metadata = &input.rollout.metadata;
        let spec = &input.rollout.spec;
        let name = spec.rewrite_ref.as_ref().map_or(metadata.name.as_str(), |reference| reference.name.as_str());
        let rewrite = input.world.rewrites.as_ref().ok().and_then(|rewrites| rewrite::find(name, rewrites));
        let uid = metadata.uid.as_deref().unwrap_or(&metadata.name);
        Self { rollout: input.rollout, spec, world: input.world, now, uid, rewrite }
    }

    fn rewrite_name(&self) -> &'a str {
        let name = self.spec.rewrite_ref.as_ref().map(|reference| reference.name.as_str());
        name.unwrap_or(&self.rollout.metadata.name)
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
            Ok(Some(adapters)) => adapters.file.as_ref().map_err(Clone::clone),
            Ok(None) => Err(format!("the adapters file {name} does not exist: make it, or mend spec.adaptersRef")),
            Err(error) => Err(format!("the adapters file {name} cannot be read: {error}")),
        }
    }

    pub(crate) fn servers(&self) -> Option<&'a [Server]> {
        self.world.servers.as_deref().ok()
    }

    /// Every other Rollout; none where they could not be listed.
    pub(crate) fn others(&self) -> Vec<&'a Rollout> {
        let all = self.world.rollouts.as_deref().unwrap_or_default();
        all.iter().filter(|other| !conflict::is_same(self.rollout, other)).collect()
    }

    fn is_observed(&self) -> bool {
        let world = self.world;
        self.adapters().is_some() && world.rewrites.is_ok() && world.servers.is_ok() && world.routers.is_ok()
    }

    /// Why nothing at all may be done, as reason and words.
    fn objection(&self) -> Option<(&'static str, String)> {
        if let Some(error) = self.spec.validate().first() {
            return Some((reason::INVALID, format!("{}: {}", error.path, error.message)));
        }
        let rollouts = self.world.rollouts.as_deref().unwrap_or_default();
        conflict::conflict(self.rollout, rollouts).map(|what| (reason::CONFLICT, what))
    }

    fn refuse(&self, mut status: RolloutStatus, (why, message): (&'static str, String)) -> Decision {
        let news = report::stall(&mut status, self.rollout, why, &message, self.now);
        let events = if news { vec![Event { warning: true, reason: why.to_owned(), message }] } else { Vec::new() };
        Decision { status, effects: Vec::new(), events, requeue: None }
    }

    fn run(&self, mut status: RolloutStatus) -> Decision {
        let wish = desired::resolve(&self.spec.adapter, self.file());
        if is_blank(&status)
            && let Some(wait) = self.adopt(&mut status, &wish)
        {
            return self.wait_for_adoption(status, wait);
        }
        let mut events = self.compare_rewrite(&mut status);
        let proof = self.prove(&status);
        let mut traffic = self.ask(&mut status, &proof, &wish);
        events.append(&mut traffic.events);
        let mut left = traffic.left;
        // A change of weights that was asked for is not proven by what routers said before.
        let proof = self.prove(&status);
        let obstacle = self.admit(&mut status, &proof, &mut events, &mut left);
        let gate = self.gate(&status);
        let scene = self.traffic_scene(&proof, gate.as_ref(), obstacle.as_ref());
        let mut traffic = Traffic::of(&mut status);
        let mut waits = traffic.advance(scene);
        events.append(&mut traffic.events);
        left.append(&mut traffic.left);
        if let (Some(obstacle), true) = (&obstacle, waits.is_empty()) {
            waits.push(obstacle.clone());
        }
        let proof = self.prove(&status);
        let retiring = retire::go_on(self, &mut status, left, &proof, &mut events);
        let effects = self.effects(&status);
        let report = Report {
            case: self,
            wish: &wish,
            waits: &waits,
            gate: gate.as_ref(),
            proof: &proof,
            retiring: &retiring.waits,
        };
        events.extend(report.write(&mut status));
        let agains = waits.iter().chain(&retiring.waits).map(|wait| wait.again);
        let requeue = self.requeue(agains.chain(self.contest_end(&status).map(Again::At)));
        Decision { status, effects, events, requeue }
    }

    /// Takes over what serves the name already.
    fn adopt(&self, status: &mut RolloutStatus, wish: &Wish) -> Option<Wait> {
        let spec = self.spec;
        match adoption::adopt(self.rewrite_name(), &spec.pool_ref, &spec.model, self.uid, self.world) {
            Adoption::Waits(wait) => return Some(wait),
            Adoption::FirstInstall => {}
            Adoption::Found { stable, weights, sequence } => {
                status.admission.admitted = weights.iter().map(|target| target.id.clone()).collect();
                status.admission.admitted.push(stable.clone());
                status.revision.stable = Some(stable);
                // An adopted rule has no stamp of ours yet: its first proof needs one.
                status.weights.sequence = if weights.is_empty() { sequence } else { sequence.max(sequence.next()) };
                status.weights.desired = weights;
                status.weights.changed_at = Some(self.now);
            }
        }
        self.adopt_key(status, wish);
        None
    }

    /// What the operator's key remembers of this Rollout when its status was lost.
    fn adopt_key(&self, status: &mut RolloutStatus, wish: &Wish) {
        let (Some(adapters), Some(pattern)) = (self.adapters(), operator_key::named(self.spec)) else { return };
        let mine = |id: &&AdapterId| matches_pattern(pattern, id.as_str());
        let weights = &status.weights.desired;
        let wanted = |id: &AdapterId| *wish == Wish::Id(id.clone()) || weights.iter().any(|target| target.id == *id);
        for id in adapters.key.serving.iter().filter(mine).filter(|id| !wanted(id)) {
            status.retired.push(Retired {
                id: id.clone(),
                since: self.now,
                state: RetirementState::Waiting,
                reason: "it was serving before the status was lost".to_owned(),
            });
        }
        status.admission.admitted.extend(adapters.key.admitted.iter().filter(mine).cloned());
        status.admission.admitted.sort_unstable();
        status.admission.admitted.dedup();
        let reason = "it was rejected before the status was lost".to_owned();
        let rejected = adapters.key.rejected.iter().filter(mine);
        status.rejected.extend(rejected.map(|id| Rejected { id: id.clone(), reason: reason.clone() }));
    }

    /// Nothing moves, but sidecars have to know that new ids wait for their admission.
    fn wait_for_adoption(&self, mut status: RolloutStatus, wait: Wait) -> Decision {
        let mut effects = Vec::new();
        if let (Some(adapters), Some(pattern)) = (self.adapters(), operator_key::named(self.spec))
            && !adapters.key.managed.iter().any(|managed| managed == pattern)
        {
            let mut key = adapters.key.clone();
            key.managed.push(pattern.to_owned());
            effects.push(Effect::WriteAdapters { user_text: None, key: Some(operator_key::sort(key)) });
        }
        let events = report::pend(&mut status, self.rollout, &wait, self.now);
        Decision { status, effects, events, requeue: self.requeue([wait.again].into_iter()) }
    }

    /// Takes note of what the rewrite says: a higher stamp, our own last write, or somebody else's edit.
    fn compare_rewrite(&self, status: &mut RolloutStatus) -> Vec<Event> {
        if self.world.rewrites.is_err() || status.weights.desired.is_empty() {
            return Vec::new();
        }
        if let Some(rewrite) = self.rewrite {
            status.rewrite = Some(RewriteIdentity {
                group: rewrite.group().map(|group| group.name().to_owned()).unwrap_or_default(),
                name: rewrite.metadata.name.clone(),
                uid: rewrite.metadata.uid.clone().unwrap_or_default(),
            });
            // Somebody wrote for this Rollout what this status does not know of. If the status is old, writing it will
            // be refused as stale; if it is not, it was restored, and goes on from there.
            if let Some(stamp) = rewrite::stamp(rewrite, self.uid).filter(|stamp| *stamp > status.weights.sequence) {
                status.weights.sequence = stamp.next();
                return Vec::new();
            }
            if rewrite::is_written(rewrite, self.wanted(status)) {
                status.weights.applied = status.weights.sequence;
                return Vec::new();
            }
        }
        let was_applied = status.weights.applied == status.weights.sequence;
        if !was_applied {
            return Vec::new();
        }
        // From here on it is just a write that is missing: it is said once.
        status.weights.applied.0 -= 1;
        status.weights.overwritten.push(self.now);
        let surplus = status.weights.overwritten.len().saturating_sub(CONTEST);
        status.weights.overwritten.drain(..surplus);
        let what = if self.rewrite.is_some() { "edited" } else { "deleted" };
        let message = format!("somebody {what} rewrite {}: its weights are put back", self.rewrite_name());
        vec![Event { warning: true, reason: reason::REWRITE_OVERWRITTEN.to_owned(), message }]
    }

    /// Until when a contested rewrite is left as it is. Never while it would send requests to nobody.
    pub(crate) fn contest_end(&self, status: &RolloutStatus) -> Option<Timestamp> {
        let overwritten = &status.weights.overwritten;
        let (first, last) = (overwritten.first()?, overwritten.last()?);
        let contested = overwritten.len() >= CONTEST && text::since(*first, self.now) < CONTEST_WINDOW;
        let moved_since = status.weights.changed_at.is_some_and(|changed| changed > *last);
        let end = text::after(*last, CONTEST_PACE);
        let serves =
            self.rewrite.and_then(|rewrite| rewrite::rule_for(&self.spec.model, rewrite)).is_some_and(|rule| {
                rule.targets.iter().all(|target| {
                    let id = AdapterId::new(target.model_rewrite.clone());
                    id.is_ok_and(|id| self.servers().is_some_and(|servers| crate::residency::could_serve(&id, servers)))
                })
            });
        (contested && !moved_since && serves && self.now < end).then_some(end)
    }

    fn wanted<'b>(&'b self, status: &'b RolloutStatus) -> Wanted<'b> {
        Wanted {
            name: self.rewrite_name(),
            group: self.world.new_rewrite_group,
            namespace: self.rollout.metadata.namespace.as_deref(),
            model: &self.spec.model,
            pool: &self.spec.pool_ref,
            rollout_uid: self.uid,
            weights: &status.weights,
            stable: status.revision.stable.as_ref(),
            sticky_header: self.spec.strategy.sticky_header.as_deref(),
        }
    }

    fn prove(&self, status: &RolloutStatus) -> Proof {
        let written = self.rewrite.is_some_and(|rewrite| rewrite::is_written(rewrite, self.wanted(status)));
        let claim = Claim {
            model: &self.spec.model,
            rollout_uid: self.uid,
            rewrite_uid: self.rewrite.and_then(|rewrite| rewrite.metadata.uid.as_deref()),
            written,
            weights: &status.weights,
        };
        routers::prove(self.spec.router, claim, self.world.routers.as_deref(), self.now)
    }

    fn traffic_scene<'b>(
        &'b self,
        proof: &'b Proof,
        gate: Option<&'b Gate>,
        obstacle: Option<&'b Wait>,
    ) -> traffic::Scene<'b> {
        traffic::Scene {
            now: self.now,
            paused: self.spec.paused,
            strategy: &self.spec.strategy,
            observed: self.is_observed(),
            servers: self.servers(),
            gate,
            obstacle,
            proof,
        }
    }

    /// What a person asked for, an abort above all, and then what the spec and the file want now.
    fn ask<'s>(&self, status: &'s mut RolloutStatus, proof: &Proof, wish: &Wish) -> Traffic<'s> {
        if let Request::New(intent) = intent::request(self.rollout) {
            let scene = self.traffic_scene(proof, None, None);
            let mut traffic = Traffic::of(status);
            let action = intent::consume(&intent, &mut traffic, &self.spec.strategy, scene);
            let (events, left) = (traffic.events, traffic.left);
            status.last_action = Some(action);
            let mut traffic = self.want(status, wish);
            traffic.events.splice(0..0, events);
            traffic.left.splice(0..0, left);
            return traffic;
        }
        self.want(status, wish)
    }

    fn want<'s>(&self, status: &'s mut RolloutStatus, wish: &Wish) -> Traffic<'s> {
        let retired = &status.retired;
        let change = match wish {
            Wish::Id(id) if status.revision.desired.as_ref() != Some(id) => {
                Some((id, retired.iter().any(|entry| entry.id == *id && entry.state != RetirementState::Gone)))
            }
            _ => None,
        };
        let mut traffic = Traffic::of(status);
        if let Some((id, at_once)) = change {
            traffic.begin(id, &self.spec.strategy, at_once, self.now);
        }
        traffic
    }

    /// Lets the desired adapter be tried on one server, and then be loaded on all. Says what keeps it from residency.
    fn admit(
        &self,
        status: &mut RolloutStatus,
        proof: &Proof,
        events: &mut Vec<Event>,
        left: &mut Vec<(AdapterId, String)>,
    ) -> Option<Wait> {
        let desired = status.revision.desired.clone()?;
        if status.rejected.iter().any(|rejected| rejected.id == desired) {
            status.admission.pilot = None;
            return None;
        }
        let file = match self.file() {
            Ok(file) => file,
            Err(why) => return Some(Wait::soon(reason::UNAVAILABLE, why)),
        };
        if let Some(why) = desired::not_listed(&desired, file) {
            return Some(Wait::on_change(reason::NOT_LISTED, why));
        }
        if status.admission.admitted.contains(&desired) {
            status.admission.pilot = None;
            return self.died_elsewhere(status, &desired, proof, events, left).or_else(|| self.unwritten(&desired));
        }
        let Some(servers) = self.servers() else {
            return Some(Wait::soon(reason::UNAVAILABLE, "the servers of the pool cannot be listed"));
        };
        let serving: Vec<AdapterId> = status.weights.desired.iter().map(|target| target.id.clone()).collect();
        let waits = |words: String| Some(Wait::soon(reason::PILOT_PENDING, words));
        match pilot::judge(&desired, status.admission.pilot.as_ref(), &serving, servers, self.content()) {
            pilot::Verdict::Admit(server) => {
                status.admission.admitted.push(desired.clone());
                status.admission.pilot = None;
                let message = format!("{desired} is proven on {server}: every server may load it");
                events.push(Event { warning: false, reason: reason::PROGRESSING.to_owned(), message });
                self.unwritten(&desired)
            }
            pilot::Verdict::Choose(server) => {
                let message = format!("{desired} is tried on {server} first");
                events.push(Event {
                    warning: false,
                    reason: reason::PILOT_PENDING.to_owned(),
                    message: message.clone(),
                });
                status.admission.pilot = Some(Pilot { id: desired, pod: server });
                waits(message)
            }
            pilot::Verdict::Trying(words) => waits(format!("{desired} is tried on one server first: {words}")),
            pilot::Verdict::Nobody(words) => Some(Wait::soon(reason::NO_READY_PODS, words)),
            pilot::Verdict::Reject(why) => self.fail(status, &why, proof, events, left),
        }
    }

    /// An adapter that was proven on its pilot may still end another server: no third one tries it.
    fn died_elsewhere(
        &self,
        status: &mut RolloutStatus,
        desired: &AdapterId,
        proof: &Proof,
        events: &mut Vec<Event>,
        left: &mut Vec<(AdapterId, String)>,
    ) -> Option<Wait> {
        let unfinished = Traffic::of(status).is_unfinished();
        let why = unfinished.then(|| pilot::death(desired, self.servers()?, self.content())).flatten()?;
        self.fail(status, &why, proof, events, left)
    }

    fn fail(
        &self,
        status: &mut RolloutStatus,
        why: &str,
        proof: &Proof,
        events: &mut Vec<Event>,
        left: &mut Vec<(AdapterId, String)>,
    ) -> Option<Wait> {
        let scene = self.traffic_scene(proof, None, None);
        let mut traffic = Traffic::of(status);
        let wait = traffic.fail(why, reason::ADAPTER_REJECTED, scene);
        events.append(&mut traffic.events);
        left.append(&mut traffic.left);
        if wait.is_none() {
            status.admission.pilot = None;
        }
        wait
    }

    /// Before an id gets weight, the sidecars have been told never to unload it.
    fn unwritten(&self, id: &AdapterId) -> Option<Wait> {
        let told = self
            .adapters()
            .is_some_and(|adapters| adapters.key.serving.contains(id) && adapters.key.admitted.contains(id));
        (!told).then(|| Wait::soon(reason::NOT_RESIDENT, format!("{id} is admitted to every server")))
    }

    fn gate(&self, status: &RolloutStatus) -> Option<Gate> {
        let desired = status.revision.desired.as_ref()?;
        Some(Gate::look(desired, self.spec.residency, self.servers()?, self.content()))
    }

    /// What is missing between the status and the world: the rewrite first, an abort waits for nothing else.
    fn effects(&self, status: &RolloutStatus) -> Vec<Effect> {
        let mut effects = Vec::new();
        let may_write = self.world.rewrites.is_ok() && !status.weights.desired.is_empty();
        if may_write && self.contest_end(status).is_none() {
            let edited = rewrite::edited(self.rewrite, self.wanted(status));
            effects.extend(edited.map(|rewrite| Effect::WriteRewrite(Box::new(rewrite))));
        }
        if let Some(adapters) = self.adapters() {
            let user_text = retire::edit(status, adapters);
            let key = self.key(status, adapters);
            if user_text.is_some() || key.is_some() {
                effects.push(Effect::WriteAdapters { user_text, key });
            }
        }
        effects
    }

    /// The operator's key, where it has to change.
    fn key(&self, status: &RolloutStatus, adapters: &Adapters) -> Option<OperatorKey> {
        // Without the other Rollouts nobody knows whose entries the rest are.
        self.world.rollouts.as_ref().ok()?;
        let reference = &self.spec.adapters_ref;
        let others: Vec<OperatorKey> = self
            .others()
            .into_iter()
            .filter(|other| other.spec.adapters_ref == *reference)
            .filter(|other| other.metadata.namespace == self.rollout.metadata.namespace)
            .map(|other| operator_key::part(&other.spec, &other.status.clone().unwrap_or_default()))
            .collect();
        let key = operator_key::merge(&adapters.key, operator_key::part(self.spec, status), &others);
        (key != operator_key::sort(adapters.key.clone())).then_some(key)
    }

    fn requeue(&self, agains: impl Iterator<Item = Again>) -> Option<Duration> {
        let delay = |again| match again {
            Again::Soon => Some(POLL),
            // A little later than the time itself: then it is over for sure.
            Again::At(at) => Some(text::since(self.now, at) + Duration::from_millis(1)),
            Again::OnChange => None,
        };
        agains.filter_map(delay).min()
    }

    /// What the adapters file was when this was decided.
    pub(crate) fn observed_adapters(&self) -> Option<ObservedAdapters> {
        self.adapters().map(|adapters| ObservedAdapters {
            resource_version: adapters.version.clone(),
            hash: adapters.hash.clone(),
        })
    }
}

/// A status that knows nothing: the first time, or lost.
fn is_blank(status: &RolloutStatus) -> bool {
    status.revision.number == 0 && status.revision.stable.is_none() && status.weights.desired.is_empty()
}
