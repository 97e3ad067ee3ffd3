//! A second Rollout in the world, with the same pool and adapters file but its own model and ids.
//!
//! The fields of `World` hold the state of one Rollout, and `OtherRollout` holds that of the other. The two are swapped
//! while the other one is used, so that every action and check works for both.

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

/// The part of the world's state that belongs to a single Rollout.
#[derive(Debug, Clone)]
pub(crate) struct OtherRollout {
    rollout: Rollout,
    rollout_version: u64,
    deleted: bool,
    events: Vec<RolloutEvent>,
    weights_by_sequence: BTreeMap<i64, Vec<(String, i32)>>,
    status_writes: usize,
    weight_history: Vec<Vec<(String, i32)>>,
    planned_weights: Vec<i32>,
    adoptable_weights: Vec<Vec<(String, i32)>>,
}

/// Everything that the documents contain for one Rollout.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RolloutFootprint {
    /// Its rule: name of the rewrite, rule, sequence there, and which of its targets are marked as stable.
    rule: Option<(String, RewriteRule, Option<String>, BTreeSet<String>)>,
    /// Its entries in the operator directives.
    directives: OperatorDirectives,
    /// Its ids under `ensureExist` and under `ensureNotExist`.
    listed: [Vec<AdapterId>; 2],
}

impl World {
    /// Adds another Rollout, with this adapter listed for it.
    pub(crate) fn add_other_rollout(&mut self, rollout: &str, change: impl FnOnce(&mut Rollout), name: &str) {
        let mut rollout = Rollout::from_yaml(rollout).unwrap();
        rollout.metadata.uid = Some("uid-of-neighbor".to_owned());
        rollout.metadata.generation = Some(1);
        change(&mut rollout);
        let mut directives = self.directives();
        directives.managed.extend(rollout.spec.adapter.managed_pattern().map(str::to_owned));
        self.other_rollout = Some(OtherRollout {
            planned_weights: planned_weights(&rollout),
            rollout,
            rollout_version: self.next_version(),
            deleted: false,
            events: Vec::new(),
            weights_by_sequence: BTreeMap::new(),
            status_writes: 0,
            weight_history: Vec::new(),
            adoptable_weights: Vec::new(),
        });
        let entry = format!("    - id: {name} # comment of {name}\n      source: org/{name}\n");
        let user_text = self.adapters.user_text.clone() + &entry;
        self.write_adapters(Some(user_text), Some(directives.to_yaml()));
    }

    /// Swaps the state of the two Rollouts.
    fn swap_rollouts(&mut self) {
        let Some(other) = &mut self.other_rollout else { return };
        mem::swap(&mut self.rollout, &mut other.rollout);
        mem::swap(&mut self.rollout_version, &mut other.rollout_version);
        mem::swap(&mut self.deleted, &mut other.deleted);
        mem::swap(&mut self.events, &mut other.events);
        mem::swap(&mut self.weights_by_sequence, &mut other.weights_by_sequence);
        mem::swap(&mut self.status_writes, &mut other.status_writes);
        mem::swap(&mut self.weight_history, &mut other.weight_history);
        mem::swap(&mut self.planned_weights, &mut other.planned_weights);
        mem::swap(&mut self.adoptable_weights, &mut other.adoptable_weights);
    }

    /// Calls a function while the fields hold the Rollout of this name.
    pub(crate) fn with_rollout<R>(&mut self, name: &str, action: impl FnOnce(&mut Self) -> R) -> R {
        let is_other = self.other_rollout.as_ref().is_some_and(|other| other.rollout.metadata.name == name);
        if !is_other {
            return action(self);
        }
        self.swap_rollouts();
        let result = action(self);
        self.swap_rollouts();
        result
    }

    /// Calls a function for every Rollout.
    pub(crate) fn with_each_rollout<R>(&mut self, mut action: impl FnMut(&mut Self) -> R) -> Vec<R> {
        let mut results = vec![action(self)];
        if self.other_rollout.is_some() {
            self.swap_rollouts();
            results.push(action(self));
            self.swap_rollouts();
        }
        results
    }

    /// Returns the Rollouts that exist, with their versions.
    pub(crate) fn rollouts(&self) -> impl Iterator<Item = (&Rollout, u64)> {
        let other = self.other_rollout.as_ref().map(|other| (&other.rollout, other.rollout_version, other.deleted));
        let all = std::iter::once((&self.rollout, self.rollout_version, self.deleted)).chain(other);
        all.filter(|(.., deleted)| !deleted).map(|(rollout, version, _)| (rollout, version))
    }

    /// Returns the model names that clients send.
    pub(crate) fn models(&self) -> Vec<ModelName> {
        let other = self.other_rollout.as_ref().map(|other| other.rollout.spec.model.clone());
        std::iter::once(self.rollout.spec.model.clone()).chain(other).collect()
    }

    /// Returns the index of the Rollout's rewrite; `None` if it does not exist.
    pub(crate) fn rewrite_index(&self) -> Option<usize> {
        let reference = self.rollout.spec.rewrite_ref.as_ref();
        let name = reference.map_or(&self.rollout.metadata.name, |reference| &reference.name);
        self.rewrites.iter().position(|(rewrite, _)| rewrite.metadata.name == *name)
    }

    /// Returns what the documents contain for the Rollout that is swapped out.
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

    /// Checks that an operator's write for one Rollout did not change what the documents contain for the other one.
    pub(crate) fn check_other_footprint(&mut self, before: Option<RolloutFootprint>) {
        let (Some(mut before), Some(mut after)) = (before, self.other_footprint()) else { return };
        let writer = self.rollout.metadata.name.clone();
        // Patterns of the writing Rollout may replace explicit ids of the other one, as long as no id is left out.
        let managed = self.directives().managed;
        after.directives.managed.clear();
        before.directives.managed.retain(|id| !managed.iter().any(|pattern| matches_pattern(pattern, id)));
        if before.rule != after.rule {
            let how = format!("{writer} changed {:?} to {:?}", before.rule, after.rule);
            self.record_violation(Invariant::RulesAreIsolated, how);
        }
        if (&before.directives, &before.listed) != (&after.directives, &after.listed) {
            let (before, after) = ((before.directives, before.listed), (after.directives, after.listed));
            self.record_violation(Invariant::EntriesAreIsolated, format!("{writer} changed {before:?} to {after:?}"));
        }
    }

    /// Checks that a deleted Rollout has no entries in the operator directives, if another Rollout still exists.
    pub(crate) fn check_entries_finalized(&mut self) {
        let other_is_there = self.other_rollout.as_ref().is_some_and(|other| !other.deleted);
        if !self.deleted || !other_is_there {
            return;
        }
        let (model, directives) = (self.rollout.spec.model.clone(), self.directives());
        let leftovers =
            directives.managed.iter().map(String::as_str).chain(directive_ids(&directives).map(AdapterId::as_str));
        let leftovers: Vec<&str> = leftovers.filter(|id| belongs_to_model(&model, id)).collect();
        if !leftovers.is_empty() {
            self.record_violation(Invariant::EntriesAreFinalized, format!("{leftovers:?} are still there"));
        }
    }
}

/// The ids of a model begin with its name.
fn belongs_to_model(model: &ModelName, id: &str) -> bool {
    id.starts_with(model.as_str())
}

fn directive_ids(directives: &OperatorDirectives) -> impl Iterator<Item = &AdapterId> {
    let pilots = directives.pilots.iter().map(|pilot| &pilot.id);
    directives.admitted.iter().chain(&directives.serving).chain(&directives.rejected).chain(pilots)
}

fn rewrite_footprint(
    rollout: &Rollout,
    rewrite: &InferenceModelRewrite,
) -> Option<(String, RewriteRule, Option<String>, BTreeSet<String>)> {
    let rule = rewrite.spec.rules.iter().find(|rule| matches_model(&rollout.spec.model, rule))?;
    let ObjectMeta { name, annotations, .. } = &rewrite.metadata;
    let sequence = annotations.get(&sequence_annotation(rollout.metadata.uid.as_deref().unwrap_or_default())).cloned();
    let stable = annotations.get(STABLE_ANNOTATION).map(String::as_str).unwrap_or_default().split(',');
    let is_target = |id: &&str| rule.targets.iter().any(|target| target.model_rewrite == *id);
    Some((name.clone(), rule.clone(), sequence, stable.filter(is_target).map(str::to_owned).collect()))
}

pub(crate) fn matches_model(model: &ModelName, rule: &RewriteRule) -> bool {
    rule.matches.iter().any(|candidate| candidate.model.value == model.as_str())
}

/// Returns the entries that belong to a Rollout. Others of its model are leftovers, which any write may remove.
fn directives_footprint(rollout: &Rollout, mut directives: OperatorDirectives) -> OperatorDirectives {
    let named = referenced_ids(rollout);
    let belongs = |id: &str| {
        let follows = rollout.spec.adapter.follow.is_some();
        belongs_to_model(&rollout.spec.model, id) && (follows || named.iter().any(|named| named.as_str() == id))
    };
    directives.managed.retain(|pattern| belongs(pattern));
    directives.pilots.retain(|pilot| belongs(pilot.id.as_str()));
    for ids in [&mut directives.admitted, &mut directives.serving, &mut directives.rejected] {
        ids.retain(|id| belongs(id.as_str()));
    }
    directives
}

/// Returns the ids that a Rollout names or uses.
fn referenced_ids(rollout: &Rollout) -> BTreeSet<AdapterId> {
    let RolloutStatus { revision, admission, weights, rejected, retired, .. } =
        rollout.status.clone().unwrap_or_default();
    let desired = rollout.spec.adapter.id.clone().into_iter().chain(revision.stable).chain(revision.desired);
    let weighted = weights.desired.into_iter().map(|target| target.id);
    let pilots = admission.pilot.into_iter().map(|pilot| pilot.id);
    let rejected = rejected.into_iter().map(|rejected| rejected.id);
    let retiring =
        retired.into_iter().filter(|retired| retired.state != RetirementState::Gone).map(|retired| retired.id);
    let admitted = admission.admitted.into_iter().chain(admission.retained);
    desired.chain(weighted).chain(pilots).chain(rejected).chain(retiring).chain(admitted).collect()
}
