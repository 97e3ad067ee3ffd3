//! A second Rollout in the world, of the same pool and the same adapters file, with a model and ids of its own.
//!
//! The world holds what it knows of one Rollout, and here lies what it knows of the other: the two change places for as
//! long as somebody looks at the other one. So whatever is done to a Rollout, and checked of it, is so for both.

use crate::{
    invariants::Invariant,
    world::{World, planned},
};
use rollora_api::{
    metadata::ObjectMeta,
    names::{AdapterId, ModelName, STABLE_ANNOTATION, sequence_annotation},
    operator_directives::{OperatorDirectives, matches_pattern},
    rewrite::{InferenceModelRewrite, RewriteRule},
    rollout::{Rollout, RolloutStatus, status::RetirementState},
};
use rollora_operator::ports::Event;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

/// What the world knows of one Rollout alone.
#[derive(Debug, Clone)]
pub(crate) struct Neighbour {
    rollout: Rollout,
    rollout_version: u64,
    gone: bool,
    events: Vec<Event>,
    stamped: BTreeMap<i64, Vec<(String, i32)>>,
    status_writes: usize,
    seen_weights: Vec<Vec<(String, i32)>>,
    planned: Vec<i32>,
    adoptable: Vec<Vec<(String, i32)>>,
}

/// What the documents say of one Rollout.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Share {
    /// Its rule, the name of the rewrite that has it, its stamp there, and which of its targets are called stable.
    rule: Option<(String, RewriteRule, Option<String>, BTreeSet<String>)>,
    /// Its entries in the operator's key.
    key: OperatorDirectives,
    /// Its ids under `ensureExist` and under `ensureNotExist`.
    listed: [Vec<AdapterId>; 2],
}

impl World {
    /// Another Rollout comes, and this adapter is listed for it.
    pub(crate) fn add_neighbour(&mut self, rollout: &str, change: impl FnOnce(&mut Rollout), name: &str) {
        let mut rollout = Rollout::from_yaml(rollout).unwrap();
        rollout.metadata.uid = Some("uid-of-neighbour".to_owned());
        rollout.metadata.generation = Some(1);
        change(&mut rollout);
        let mut key = self.key();
        key.managed.extend(rollout.spec.adapter.managed_pattern().map(str::to_owned));
        self.neighbour = Some(Neighbour {
            planned: planned(&rollout),
            rollout,
            rollout_version: self.next_version(),
            gone: false,
            events: Vec::new(),
            stamped: BTreeMap::new(),
            status_writes: 0,
            seen_weights: Vec::new(),
            adoptable: Vec::new(),
        });
        let entry = format!("    - id: {name} # comment of {name}\n      source: org/{name}\n");
        let user_text = self.adapters.user_text.clone() + &entry;
        self.write_adapters(Some(user_text), Some(key.to_yaml()));
    }

    /// The other Rollout is the one that is looked at.
    fn turn(&mut self) {
        let Some(other) = &mut self.neighbour else { return };
        mem::swap(&mut self.rollout, &mut other.rollout);
        mem::swap(&mut self.rollout_version, &mut other.rollout_version);
        mem::swap(&mut self.gone, &mut other.gone);
        mem::swap(&mut self.events, &mut other.events);
        mem::swap(&mut self.stamped, &mut other.stamped);
        mem::swap(&mut self.status_writes, &mut other.status_writes);
        mem::swap(&mut self.seen_weights, &mut other.seen_weights);
        mem::swap(&mut self.planned, &mut other.planned);
        mem::swap(&mut self.adoptable, &mut other.adoptable);
    }

    /// Looks at the Rollout of this name.
    pub(crate) fn of<R>(&mut self, name: &str, look: impl FnOnce(&mut Self) -> R) -> R {
        let is_other = self.neighbour.as_ref().is_some_and(|other| other.rollout.metadata.name == name);
        if !is_other {
            return look(self);
        }
        self.turn();
        let result = look(self);
        self.turn();
        result
    }

    /// Looks at every Rollout.
    pub(crate) fn of_each<R>(&mut self, mut look: impl FnMut(&mut Self) -> R) -> Vec<R> {
        let mut results = vec![look(self)];
        if self.neighbour.is_some() {
            self.turn();
            results.push(look(self));
            self.turn();
        }
        results
    }

    /// The Rollouts that are there, with their versions.
    pub(crate) fn rollouts(&self) -> impl Iterator<Item = (&Rollout, u64)> {
        let other = self.neighbour.as_ref().map(|other| (&other.rollout, other.rollout_version, other.gone));
        let all = std::iter::once((&self.rollout, self.rollout_version, self.gone)).chain(other);
        all.filter(|(.., gone)| !gone).map(|(rollout, version, _)| (rollout, version))
    }

    /// The names that clients send.
    pub(crate) fn models(&self) -> Vec<ModelName> {
        let other = self.neighbour.as_ref().map(|other| other.rollout.spec.model.clone());
        std::iter::once(self.rollout.spec.model.clone()).chain(other).collect()
    }

    /// Where the rewrite of the Rollout is, if it is there.
    pub(crate) fn own_rewrite(&self) -> Option<usize> {
        let reference = self.rollout.spec.rewrite_ref.as_ref();
        let name = reference.map_or(&self.rollout.metadata.name, |reference| &reference.name);
        self.rewrites.iter().position(|(rewrite, _)| rewrite.metadata.name == *name)
    }

    /// What the documents say of the Rollout that is not looked at.
    pub(crate) fn share_of_other(&self) -> Option<Share> {
        let other = self.neighbour.as_ref().filter(|other| !other.gone)?;
        let mut rewrites = self.rewrites.iter().map(|(rewrite, _)| rewrite);
        Some(Share {
            rule: rewrites.find_map(|rewrite| share_of_rewrite(&other.rollout, rewrite)),
            key: share_of_key(&other.rollout, self.key()),
            listed: self.listed(&other.rollout.spec.model),
        })
    }

    fn listed(&self, model: &ModelName) -> [Vec<AdapterId>; 2] {
        let file = self.file();
        [file.ensure_exist, file.ensure_not_exist].map(|entries| {
            let ids = entries.into_iter().map(|entry| entry.id);
            ids.filter(|id| is_of(model, id.as_str())).collect()
        })
    }

    /// An operator has written a document for one Rollout: what it says of the other, which was `before`, is as it was.
    pub(crate) fn check_share_of_other(&mut self, before: Option<Share>) {
        let (Some(mut before), Some(mut after)) = (before, self.share_of_other()) else { return };
        let who = self.rollout.metadata.name.clone();
        // What the other one governs may be written down for it, as long as no id is left out.
        let governs = self.key().managed;
        after.key.managed.clear();
        before.key.managed.retain(|id| !governs.iter().any(|pattern| matches_pattern(pattern, id)));
        if before.rule != after.rule {
            let how = format!("{who} made {:?} of {:?}", after.rule, before.rule);
            self.violate(Invariant::RulesAreOnesOwn, how);
        }
        if (&before.key, &before.listed) != (&after.key, &after.listed) {
            let (before, after) = ((before.key, before.listed), (after.key, after.listed));
            self.violate(Invariant::EntriesAreOnesOwn, format!("{who} made {after:?} of {before:?}"));
        }
    }

    /// The Rollout is gone, and the other one could see to it: nothing of it is in the operator's key.
    pub(crate) fn check_left(&mut self) {
        let other_is_there = self.neighbour.as_ref().is_some_and(|other| !other.gone);
        if !self.gone || !other_is_there {
            return;
        }
        let (model, key) = (self.rollout.spec.model.clone(), self.key());
        let left = key.managed.iter().map(String::as_str).chain(ids(&key).map(AdapterId::as_str));
        let left: Vec<&str> = left.filter(|id| is_of(&model, id)).collect();
        if !left.is_empty() {
            self.violate(Invariant::EntriesLeaveWithTheirRollout, format!("{left:?} are still there"));
        }
    }
}

/// The ids of a model begin with its name.
fn is_of(model: &ModelName, id: &str) -> bool {
    id.starts_with(model.as_str())
}

fn ids(key: &OperatorDirectives) -> impl Iterator<Item = &AdapterId> {
    let pilots = key.pilots.iter().map(|pilot| &pilot.id);
    key.admitted.iter().chain(&key.serving).chain(&key.rejected).chain(pilots)
}

fn share_of_rewrite(
    rollout: &Rollout,
    rewrite: &InferenceModelRewrite,
) -> Option<(String, RewriteRule, Option<String>, BTreeSet<String>)> {
    let rule = rewrite.spec.rules.iter().find(|rule| is_for(&rollout.spec.model, rule))?;
    let ObjectMeta { name, annotations, .. } = &rewrite.metadata;
    let stamp = annotations.get(&sequence_annotation(rollout.metadata.uid.as_deref().unwrap_or_default())).cloned();
    let stable = annotations.get(STABLE_ANNOTATION).map(String::as_str).unwrap_or_default().split(',');
    let is_target = |id: &&str| rule.targets.iter().any(|target| target.model_rewrite == *id);
    Some((name.clone(), rule.clone(), stamp, stable.filter(is_target).map(str::to_owned).collect()))
}

pub(crate) fn is_for(model: &ModelName, rule: &RewriteRule) -> bool {
    rule.matches.iter().any(|candidate| candidate.model.value == model.as_str())
}

/// The entries that a Rollout has to do with. Others of its model are left from before: whoever writes takes them out.
fn share_of_key(rollout: &Rollout, mut key: OperatorDirectives) -> OperatorDirectives {
    let named = named(rollout);
    let is_its = |id: &str| {
        let follows = rollout.spec.adapter.follow.is_some();
        is_of(&rollout.spec.model, id) && (follows || named.iter().any(|named| named.as_str() == id))
    };
    key.managed.retain(|pattern| is_its(pattern));
    key.pilots.retain(|pilot| is_its(pilot.id.as_str()));
    for ids in [&mut key.admitted, &mut key.serving, &mut key.rejected] {
        ids.retain(|id| is_its(id.as_str()));
    }
    key
}

/// The ids that a Rollout names, or works with.
fn named(rollout: &Rollout) -> BTreeSet<AdapterId> {
    let RolloutStatus { revision, admission, weights, rejected, retired, .. } =
        rollout.status.clone().unwrap_or_default();
    let wanted = rollout.spec.adapter.id.clone().into_iter().chain(revision.stable).chain(revision.desired);
    let weighted = weights.desired.into_iter().map(|target| target.id);
    let tried = admission.pilot.into_iter().map(|pilot| pilot.id);
    let rejected = rejected.into_iter().map(|rejected| rejected.id);
    let leaving =
        retired.into_iter().filter(|retired| retired.state != RetirementState::Gone).map(|retired| retired.id);
    let admitted = admission.admitted.into_iter().chain(admission.retained);
    wanted.chain(weighted).chain(tried).chain(rejected).chain(leaving).chain(admitted).collect()
}
