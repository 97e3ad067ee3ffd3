//! The invariants, by name. Each is checked where it could be violated: at every write of a rewrite, at every unload,
//! or at every tick.

use crate::world::{World, id};
use jiff::SignedDuration;
use rollora_api::{
    adapters::AdaptersFile,
    names::{AdapterId, sequence_annotation},
    operator_directives::OperatorDirectives,
    rewrite::InferenceModelRewrite,
    rollout::status::Phase,
};
use rollora_operator::ports::AdaptersDocument;
use rollora_plan::observed::AdapterListing;
use std::fmt::Display;

/// A property that must hold in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invariant {
    /// No router sends to a target that a Ready server of the pool lacks.
    TargetsAreResident,
    /// An id is never unloaded while a router may still send to it.
    RoutedIdsStayLoaded,
    /// An id is never unloaded within `quietFor` of its last use by any client.
    UsedIdsStayLoaded,
    /// No operator write allows the unload of an id that has weight.
    WeightedIdsStayHeld,
    /// Served weights never leave the plan, unless another writer set them while the Rollout had no status: such
    /// weights are adopted as they are.
    WeightsFollowPlan,
    /// A Rollout cannot be deleted without a finalizer while traffic is split.
    SplitsHaveFinalizer,
    /// Weights never go backwards: the sequence on a rewrite only increases.
    SequencesAreMonotonic,
    /// A sequence stands for the same weights whenever it is written.
    SequencesDetermineWeights,
    /// A rejected id never gets weight.
    RejectedHasNoWeight,
    /// An abort always reaches stable.
    AbortReachesStable,
    /// A bad adapter crashes at most one server each time it is listed.
    AtMostOneServerCrashes,
    /// Every waiting state ends, or its message names what it waits for.
    WaitingHasReason,
    /// A write for one Rollout does not change the other's rule, its sequence, or its stable adapter.
    RulesAreIsolated,
    /// A write for one Rollout does not change the other's entries in the adapters file and the operator directives.
    EntriesAreIsolated,
    /// Entries are removed with their Rollout, whichever operator observes its deletion.
    EntriesAreFinalized,
    /// No Rollout takes a write for the other one for an edit by another writer.
    NoFalseOverwriteEvent,
    /// Nothing is written while nothing changes.
    IdleWritesNothing,
}

/// A violated invariant, with details.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "it is printed")]
pub(crate) struct Violation(pub(crate) Invariant, pub(crate) String);

impl World {
    pub(crate) fn record_violation(&mut self, invariant: Invariant, how: impl Display) {
        let at = self.now;
        self.violations.push(Violation(invariant, format!("at {at}: {how}")));
    }

    /// A finalizer is set before traffic is split.
    pub(crate) fn check_finalizer(&mut self, weights: &[(String, i32)]) {
        if weights.len() > 1 && !self.deleted && self.rollout.metadata.finalizers.is_empty() {
            self.record_violation(Invariant::SplitsHaveFinalizer, format!("it could be deleted at {weights:?}"));
        }
    }

    pub(crate) fn check_plan(&mut self, weights: &[(String, i32)]) {
        let total = self.rollout.spec.strategy.total_weight;
        let planned = match weights {
            [] => true,
            [(_, weight)] => *weight == 100,
            [(_, stable), (_, candidate)] => stable + candidate == total && self.planned_weights.contains(candidate),
            _ => false,
        };
        let adopted = self.adoptable_weights.iter().any(|adoptable| adoptable == weights);
        if !planned && !adopted {
            self.record_violation(Invariant::WeightsFollowPlan, format!("no step has {weights:?}"));
        }
    }

    /// Checks a write of the adapters file or the operator directives by an operator.
    pub(crate) fn check_weighted_ids_held(&mut self, before: &AdaptersDocument, after: &AdaptersDocument) {
        let directives = |document: &AdaptersDocument| {
            document.directives_text.as_deref().map(|text| OperatorDirectives::parse(text).unwrap()).unwrap_or_default()
        };
        let file =
            |document: &AdaptersDocument| AdaptersFile::parse(&document.user_text).map(|parsed| parsed.file).ok();
        for target in self.weights().into_iter().map(|(name, _)| id(&name)) {
            let dropped = directives(before).serving.contains(&target) && !directives(after).serving.contains(&target);
            let rejected =
                !directives(before).rejected.contains(&target) && directives(after).rejected.contains(&target);
            let listing = |document| file(document).map(|file| AdapterListing::of(&target, &file));
            let unlisted = listing(before) == Some(AdapterListing::EnsureExist)
                && listing(after) == Some(AdapterListing::EnsureNotExist);
            let is_leaving = self.deleted || self.rollout.metadata.deletion_timestamp.is_some();
            // Directives that drop an id which the file lists unload nothing, and the next reconcile corrects them.
            let dropped = dropped && listing(after) != Some(AdapterListing::EnsureExist);
            if (dropped || rejected || unlisted) && !is_leaving {
                let how = format!("{target}: dropped {dropped}, rejected {rejected}, unlisted {unlisted}");
                self.record_violation(Invariant::WeightedIdsStayHeld, how);
            }
        }
    }

    /// Checks a rewrite that an operator has written.
    pub(crate) fn check_sequence(&mut self, rewrite: &InferenceModelRewrite) {
        let ours = sequence_annotation(self.rollout.metadata.uid.as_deref().unwrap_or_default());
        let sequence = rewrite.metadata.annotations.get(&ours);
        let Some(sequence) = sequence.and_then(|value| value.parse::<i64>().ok()) else { return };
        let weights = self.weights();
        if let Some((highest, _)) = self.weights_by_sequence.last_key_value()
            && *highest > sequence
        {
            let how = format!("{weights:?} was written with sequence {sequence}, after {highest}");
            self.record_violation(Invariant::SequencesAreMonotonic, how);
        }
        let before = self.weights_by_sequence.entry(sequence).or_insert_with(|| weights.clone());
        if *before != weights {
            let how = format!("sequence {sequence} was written with {before:?}, and with {weights:?}");
            self.record_violation(Invariant::SequencesDetermineWeights, how);
        }
        let status = self.status();
        let rejected = |name: &String| status.rejected.iter().any(|rejected| rejected.id == id(name));
        if status.weights.sequence.0 == sequence && weights.iter().any(|(name, _)| rejected(name)) {
            let how = format!("{weights:?} while {:?} are rejected", status.rejected);
            self.record_violation(Invariant::RejectedHasNoWeight, how);
        }
    }

    pub(crate) fn check_unload(&mut self, server: &str, id: &AdapterId) {
        if self.loss_allowed.contains(id) {
            return;
        }
        let models = self.models();
        if self.routers.iter().any(|router| router.targets(&models).contains(id)) {
            self.record_violation(Invariant::RoutedIdsStayLoaded, format!("{server} unloaded {id}"));
        }
        let quiet_for = SignedDuration::try_from(self.rollout.spec.cleanup.quiet_for.get()).unwrap();
        if let Some(used) = self.last_uses.get(id)
            && self.now.duration_since(*used) < quiet_for
        {
            let how = format!("{server} unloaded {id}, which was used at {used}");
            self.record_violation(Invariant::UsedIdsStayLoaded, how);
        }
    }

    pub(crate) fn check_routes(&mut self) {
        let (mut found, models) = (Vec::new(), self.models());
        for router in &self.routers {
            for target in router.targets(&models) {
                for server in self.servers.iter().filter(|server| server.ready && !server.in_other_pool) {
                    if !server.loaded.contains_key(&target) && !self.loss_allowed.contains(&target) {
                        found.push(format!("{} sends to {target}, which {} lacks", router.name, server.name));
                    }
                }
            }
        }
        for how in found {
            self.record_violation(Invariant::TargetsAreResident, how);
        }
    }

    /// Checks that the message of every state is not empty.
    pub(crate) fn check_message(&mut self) {
        let status = self.status();
        if self.rollout.status.is_some() && !self.deleted && status.message.is_empty() {
            self.record_violation(Invariant::WaitingHasReason, format!("{status:#?}"));
        }
    }

    /// Checks the state after all faults were healed and enough time has passed.
    pub(crate) fn check_end_state(&mut self, rests: bool) {
        let (status, weights) = (self.status(), self.weights());
        if !rests && !self.deleted {
            self.record_violation(Invariant::WaitingHasReason, format!("it does not end: {status:#?}"));
        }
        let expected = status.revision.stable.as_ref().map(|stable| vec![(stable.to_string(), 100)]);
        if status.phase == Phase::RolledBack && !weights.is_empty() && Some(&weights) != expected.as_ref() {
            self.record_violation(Invariant::AbortReachesStable, format!("{weights:?} in the end"));
        }
    }

    /// Checks how many servers have crashed because of an id.
    pub(crate) fn check_crash_count(&mut self, bad: &AdapterId, at_most: usize) {
        let crashed = self.servers.iter().filter(|server| server.crash_ids.contains(bad)).count();
        if crashed > at_most {
            self.record_violation(
                Invariant::AtMostOneServerCrashes,
                format!("{crashed} servers crashed because of {bad}, at most {at_most} may"),
            );
        }
    }
}
