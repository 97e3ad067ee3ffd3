//! What must never happen, by name. Each is looked at where it could be broken: at every write of a rewrite, at every
//! unload, at every tick.

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

/// Something that must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invariant {
    /// No router sends to a target that a Ready server of the pool lacks.
    TargetsAreResident,
    /// An id is never unloaded while a router may still send to it.
    RoutedIdsStayLoaded,
    /// An id is never unloaded while anybody has used it within `quietFor`.
    UsedIdsStayLoaded,
    /// No operator writes that an id may go which has weight.
    WeightedIdsStayHeld,
    /// Served weights never leave the plan, unless somebody else gave them before anything was known: what serves a
    /// Rollout without a status is adopted as it is.
    WeightsFollowPlan,
    /// A Rollout cannot be deleted while traffic is split.
    SplitsHaveFinalizer,
    /// Weights never go backwards: the stamp on a rewrite only rises.
    StampsAreMonotonic,
    /// No effect is needed twice for different results: a stamp says the same weights whenever it is written.
    StampsDetermineWeights,
    /// What was rejected gets no weight.
    RejectedHasNoWeight,
    /// An abort always reaches stable.
    AbortReachesStable,
    /// A bad adapter hurts at most one server, each time that it is listed.
    AtMostOneServerCrashes,
    /// Every waiting state ends, or names what it waits for.
    WaitingHasReason,
    /// What is written for one Rollout changes nothing of the other's rule, its stamp, and what it calls stable.
    RulesAreIsolated,
    /// Nor of what the adapters file and the operator's key say of the other's ids.
    EntriesAreIsolated,
    /// Entries leave with their Rollout, whoever saw it go.
    EntriesAreFinalized,
    /// No Rollout takes what is written for the other for somebody's edit.
    NoFalseOverwriteEvent,
    /// Where nothing happens, nothing is written.
    IdleWritesNothing,
}

/// An invariant that was broken, and how.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "it is printed")]
pub(crate) struct Violation(pub(crate) Invariant, pub(crate) String);

impl World {
    pub(crate) fn record_violation(&mut self, invariant: Invariant, how: impl Display) {
        let at = self.now;
        self.violations.push(Violation(invariant, format!("at {at}: {how}")));
    }

    /// A deletion is held back from before traffic is split.
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

    /// An operator writes the adapters file or its key.
    pub(crate) fn check_weighted_ids_held(&mut self, before: &AdaptersDocument, after: &AdaptersDocument) {
        let key = |document: &AdaptersDocument| {
            document.directives_text.as_deref().map(|text| OperatorDirectives::parse(text).unwrap()).unwrap_or_default()
        };
        let file =
            |document: &AdaptersDocument| AdaptersFile::parse(&document.user_text).map(|parsed| parsed.file).ok();
        for target in self.weights().into_iter().map(|(name, _)| id(&name)) {
            let let_go = key(before).serving.contains(&target) && !key(after).serving.contains(&target);
            let rejected = !key(before).rejected.contains(&target) && key(after).rejected.contains(&target);
            let listing = |document| file(document).map(|file| AdapterListing::of(&target, &file));
            let unlisted = listing(before) == Some(AdapterListing::EnsureExist)
                && listing(after) == Some(AdapterListing::EnsureNotExist);
            let leaves = self.deleted || self.rollout.metadata.deletion_timestamp.is_some();
            // A key that lets go of what the file lists unloads nothing, and is mended by the next look.
            let let_go = let_go && listing(after) != Some(AdapterListing::EnsureExist);
            if (let_go || rejected || unlisted) && !leaves {
                let how = format!("{target}: let go {let_go}, rejected {rejected}, unlisted {unlisted}");
                self.record_violation(Invariant::WeightedIdsStayHeld, how);
            }
        }
    }

    /// An operator has written this.
    pub(crate) fn check_stamp(&mut self, rewrite: &InferenceModelRewrite) {
        let ours = sequence_annotation(self.rollout.metadata.uid.as_deref().unwrap_or_default());
        let stamp = rewrite.metadata.annotations.get(&ours);
        let Some(stamp) = stamp.and_then(|value| value.parse::<i64>().ok()) else { return };
        let weights = self.weights();
        if let Some((highest, _)) = self.weights_by_stamp.last_key_value()
            && *highest > stamp
        {
            let how = format!("{weights:?} was written with stamp {stamp}, after {highest}");
            self.record_violation(Invariant::StampsAreMonotonic, how);
        }
        let before = self.weights_by_stamp.entry(stamp).or_insert_with(|| weights.clone());
        if *before != weights {
            let how = format!("stamp {stamp} was written with {before:?}, and with {weights:?}");
            self.record_violation(Invariant::StampsDetermineWeights, how);
        }
        let status = self.status();
        let rejected = |name: &String| status.rejected.iter().any(|rejected| rejected.id == id(name));
        if status.weights.sequence.0 == stamp && weights.iter().any(|(name, _)| rejected(name)) {
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
        let quiet = SignedDuration::try_from(self.rollout.spec.cleanup.quiet_for.get()).unwrap();
        if let Some(used) = self.last_uses.get(id)
            && self.now.duration_since(*used) < quiet
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

    /// A state that says nothing waits for nothing that anybody could find.
    pub(crate) fn check_message(&mut self) {
        let status = self.status();
        if self.rollout.status.is_some() && !self.deleted && status.message.is_empty() {
            self.record_violation(Invariant::WaitingHasReason, format!("{status:#?}"));
        }
    }

    /// What holds when everything is well again, and time enough has passed.
    pub(crate) fn check_end_state(&mut self, rests: bool) {
        let (status, weights) = (self.status(), self.weights());
        if !rests && !self.deleted {
            self.record_violation(Invariant::WaitingHasReason, format!("it does not end: {status:#?}"));
        }
        let back = status.revision.stable.as_ref().map(|stable| vec![(stable.to_string(), 100)]);
        if status.phase == Phase::RolledBack && !weights.is_empty() && Some(&weights) != back.as_ref() {
            self.record_violation(Invariant::AbortReachesStable, format!("{weights:?} in the end"));
        }
    }

    /// How many servers may have died over an id.
    pub(crate) fn check_crash_count(&mut self, bad: &AdapterId, at_most: usize) {
        let hurt = self.servers.iter().filter(|server| server.crash_ids.contains(bad)).count();
        if hurt > at_most {
            self.record_violation(
                Invariant::AtMostOneServerCrashes,
                format!("{hurt} servers died over {bad}, {at_most} at most"),
            );
        }
    }
}
