//! A second Rollout in the world, of the same pool and the same adapters file, with a model and ids of its own.
//!
//! The world holds what it knows of one Rollout, and here lies what it knows of the other: the two change places for as
//! long as somebody looks at the other one. So whatever is done to a Rollout, and checked of it, is so for both.

use crate::{
    invariants::Invariant,
    world::{World, planned_weights},
};
use rollora_api::{
    metadata::ObjectMeta,
    names::{AdapterId, ModelName, STABLE_ANNOTATION, sequence_annotation},
    operator_directives::{OperatorDirectives, matches_pattern},
    rewrite::{InferenceModelRewrite, RewriteRule},
    rollout::{Rollout, RolloutStatus, status::RetirementState},
};
use rollora_operator::ports::RolloutEvent;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

/// What the world knows of one Rollout alone.
#[derive(Debug, Clone)]
pub(crate) struct OtherRollout {
    rollout: Rollout,
    rollout_version: u64,
    deleted: bool,
    events: Vec<RolloutEvent>,
    weights_by_stamp: BTreeMap<i64, Vec<(String, i32)>>,
    status_writes: usize,
    weight_history: Vec<Vec<(String, i32)>>,
    planned_weights: Vec<i32>,
    adoptable_weights: Vec<Vec<(String, i32)>>,
}

/// What the documents say of one Rollout.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RolloutFootprint {
    /// Its rule, the name of the rewrite that has it, its stamp there, and which of its targets are called stable.
    rule: Option<(String, RewriteRule, Option<String>, BTreeSet<String>)>,
    /// Its entries in the operator's key.
    directives: OperatorDirectives,
    /// Its ids under `ensureExist` and under `ensureNotExist`.
    listed: [Vec<AdapterId>; 2],
}

impl World {
    /// Another Rollout comes, and this adapter is listed for it.
    pub(crate) fn add_other_rollout(&mut self, rollout: &str, change: impl FnOnce(&mut Rollout), name: &str) {
        let mut rollout = Rollout::from_yaml(rollout).unwrap();
        rollout.metadata.uid = Some("uid-of-neighbour".to_owned());
        rollout.metadata.generation = Some(1);
        change(&mut rollout);
        let mut key = self.directives();
        key.managed.extend(rollout.spec.adapter.managed_pattern().map(str::to_owned));
        self.other_rollout = Some(OtherRollout {
            planned_weights: planned_weights(&rollout),
            rollout,
            rollout_version: self.next_version(),
            deleted: false,
            events: Vec::new(),
            weights_by_stamp: BTreeMap::new(),
            status_writes: 0,
            weight_history: Vec::new(),
            adoptable_weights: Vec::new(),
        });
        let entry = format!("    - id: {name} # comment of {name}\n      source: org/{name}\n");
        let user_text = self.adapters.user_text.clone() + &entry;
        self.write_adapters(Some(user_text), Some(key.to_yaml()));
    }

    /// The other Rollout is the one that is looked at.
    fn swap_rollouts(&mut self) {
        let Some(other) = &mut self.other_rollout else { return };
        mem::swap(&mut self.rollout, &mut other.rollout);
        mem::swap(&mut self.rollout_version, &mut other.rollout_version);
        mem::swap(&mut self.deleted, &mut other.deleted);
        mem::swap(&mut self.events, &mut other.events);
        mem::swap(&mut self.weights_by_stamp, &mut other.weights_by_stamp);
        mem::swap(&mut self.status_writes, &mut other.status_writes);
        mem::swap(&mut self.weight_history, &mut other.weight_history);
        mem::swap(&mut self.planned_weights, &mut other.planned_weights);
        mem::swap(&mut self.adoptable_weights, &mut other.adoptable_weights);
    }

    /// Looks at the Rollout of this name.
    pub(crate) fn with_rollout<R>(&mut self, name: &str, look: impl FnOnce(&mut Self) -> R) -> R {
        let is_other = self.other_rollout.as_ref().is_some_and(|other| other.rollout.metadata.name == name);
        if !is_other {
            return look(self);
        }
        self.swap_rollouts();
        let result = look(self);
        self.swap_rollouts();
        result
    }

    /// Looks at every Rollout.
    pub(crate) fn with_each_rollout<R>(&mut self, mut look: impl FnMut(&mut Self) -> R) -> Vec<R> {
        let mut results = vec![look(self)];
        if self.other_rollout.is_some() {
            self.swap_rollouts();
            results.push(look(self));
            self.swap_rollouts();
        }
        results
    }

    /// The Rollouts that are there, with their versions.
    pub(crate) fn rollouts(&self) -> impl Iterator<Item = (&Rollout, u64)> {
        let other = self.other_rollout.as_ref().map(|other| (&other.rollout, other.rollout_version, other.deleted));
        let all = std::iter::once((&self.rollout, self.rollout_version, self.deleted)).chain(other);
        all.filter(|(.., gone)| !gone).map(|(rollout, version, _)| (rollout, version))
    }

    /// The names that clients send.
    pub(crate) fn models(&self) -> Vec<ModelName> {
        let other = self.other_rollout.as_ref().map(|other| other.rollout.spec.model.clone());
        std::iter::once(self.rollout.spec.model.clone()).chain(other).collect()
    }

    /// Where the rewrite of the Rollout is, if it is there.
    pub(crate) fn rewrite_index(&self) -> Option<usize> {
        let reference = self.rollout.spec.rewrite_ref.as_ref();
        let name = reference.map_or(&self.rollout.metadata.name, |reference| &reference.name);
        self.rewrites.iter().position(|(rewrite, _)| rewrite.metadata.name == *name)
    }

    /// What the documents say of the Rollout that is not looked at.
    pub(crate) fn other_footprint(&self) -> Option<RolloutFootprint> {
        let other = self.other_rollout.as_ref().filter(|other| !other.deleted)?;
        let mut rewrites = self.rewrites.iter().map(|(rewrite, _)| rewrite);
        Some(RolloutFootprint {
            rule: rewrites.find_map(|rewrite| rewrite_footprint(&other.rollout, rewrite)),
            directives: directives_footprint(&other.rollout, self.directives()),
            listed: self.listed_ids(&other.rollout.spec.model),
        })
    }

    fn listed_ids(&self, model: &ModelName) -> [Vec<AdapterId>; 2] {
        let file = self.adapters_file();
        [file.ensure_exist, file.ensure_not_exist].map(|entries| {
            let ids = entries.into_iter().map(|entry| entry.id);
            ids.filter(|id| belongs_to_model(model, id.as_str())).collect()
        })
    }

    /// An operator has written a document for one Rollout: what it says of the other, which was `before`, is as it was.
    pub(crate) fn check_other_footprint(&mut self, before: Option<RolloutFootprint>) {
        let (Some(mut before), Some(mut after)) = (before, self.other_footprint()) else { return };
        let who = self.rollout.metadata.name.clone();
        // What the other one governs may be written down for it, as long as no id is left out.
        let governs = self.directives().managed;
        after.directives.managed.clear();
        before.directives.managed.retain(|id| !governs.iter().any(|pattern| matches_pattern(pattern, id)));
        if before.rule != after.rule {
            let how = format!("{who} made {:?} of {:?}", after.rule, before.rule);
            self.record_violation(Invariant::RulesAreIsolated, how);
        }
        if (&before.directives, &before.listed) != (&after.directives, &after.listed) {
            let (before, after) = ((before.directives, before.listed), (after.directives, after.listed));
            self.record_violation(Invariant::EntriesAreIsolated, format!("{who} made {after:?} of {before:?}"));
        }
    }

    /// The Rollout is gone, and the other one could see to it: nothing of it is in the operator's key.
    pub(crate) fn check_entries_finalized(&mut self) {
        let other_is_there = self.other_rollout.as_ref().is_some_and(|other| !other.deleted);
        if !self.deleted || !other_is_there {
            return;
        }
        let (model, key) = (self.rollout.spec.model.clone(), self.directives());
        let left = key.managed.iter().map(String::as_str).chain(directive_ids(&key).map(AdapterId::as_str));
        let left: Vec<&str> = left.filter(|id| belongs_to_model(&model, id)).collect();
        if !left.is_empty() {
            self.record_violation(Invariant::EntriesAreFinalized, format!("{left:?} are still there"));
        }
    }
}

/// The ids of a model begin with its name.
fn belongs_to_model(model: &ModelName, id: &str) -> bool {
    id.starts_with(model.as_str())
}

fn directive_ids(key: &OperatorDirectives) -> impl Iterator<Item = &AdapterId> {
    let pilots = key.pilots.iter().map(|pilot| &pilot.id);
    key.admitted.iter().chain(&key.serving).chain(&key.rejected).chain(pilots)
}

fn rewrite_footprint(
    rollout: &Rollout,
    rewrite: &InferenceModelRewrite,
) -> Option<(String, RewriteRule, Option<String>, BTreeSet<String>)> {
    let rule = rewrite.spec.rules.iter().find(|rule| matches_model(&rollout.spec.model, rule))?;
    let ObjectMeta { name, annotations, .. } = &rewrite.metadata;
    let stamp = annotations.get(&sequence_annotation(rollout.metadata.uid.as_deref().unwrap_or_default())).cloned();
    let stable = annotations.get(STABLE_ANNOTATION).map(String::as_str).unwrap_or_default().split(',');
    let is_target = |id: &&str| rule.targets.iter().any(|target| target.model_rewrite == *id);
    Some((name.clone(), rule.clone(), stamp, stable.filter(is_target).map(str::to_owned).collect()))
}

pub(crate) fn matches_model(model: &ModelName, rule: &RewriteRule) -> bool {
    rule.matches.iter().any(|candidate| candidate.model.value == model.as_str())
}

/// The entries that a Rollout has to do with. Others of its model are left from before: whoever writes takes them out.
fn directives_footprint(rollout: &Rollout, mut key: OperatorDirectives) -> OperatorDirectives {
    let named = referenced_ids(rollout);
    let is_its = |id: &str| {
        let follows = rollout.spec.adapter.follow.is_some();
        belongs_to_model(&rollout.spec.model, id) && (follows || named.iter().any(|named| named.as_str() == id))
    };
    key.managed.retain(|pattern| is_its(pattern));
    key.pilots.retain(|pilot| is_its(pilot.id.as_str()));
    for ids in [&mut key.admitted, &mut key.serving, &mut key.rejected] {
        ids.retain(|id| is_its(id.as_str()));
    }
    key
}

/// The ids that a Rollout names, or works with.
fn referenced_ids(rollout: &Rollout) -> BTreeSet<AdapterId> {
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
