//! The operator directives of one Rollout, and how they are merged with those of other Rollouts.
//!
//! All Rollouts of an adapters ConfigMap share one key with directives, `rollora.yaml`, which every sidecar reads.
//!
//! Invariants:
//! - Entries of ids that another Rollout governs or uses stay as they are; entries that no Rollout governs are removed.
//! - A rejected id keeps its pilot: if only the directives are left, it is tried again on the server that it has
//!   harmed.

#[cfg(test)]
mod tests;

use rollora_api::{
    names::AdapterId,
    operator_directives::{OperatorDirectives, Pilot, matches_pattern},
    rollout::{
        RolloutStatus,
        spec::RolloutSpec,
        status::{RetiredAdapter, RetirementState},
    },
};

/// Returns the directives of one Rollout.
pub(crate) fn own_directives(spec: &RolloutSpec, status: &RolloutStatus) -> OperatorDirectives {
    let admitted = &status.admission.admitted;
    let rejected = |id: &AdapterId| status.rejected.iter().any(|rejected| rejected.id == *id);
    let rejecting_pilots = status.admission.past_pilots.iter().filter(|pilot| rejected(&pilot.id));
    let is_released = |id: &AdapterId| status.retired.iter().any(|retired| retired.id == *id && !is_held(retired));
    OperatorDirectives {
        managed: governed(spec, status),
        admitted: admitted.clone(),
        pilots: status.admission.pilot.iter().chain(rejecting_pilots).cloned().collect(),
        serving: admitted.iter().filter(|id| !is_released(id)).chain(&status.admission.retained).cloned().collect(),
        // A rejected id stays admitted until no router sends requests to it.
        rejected: status
            .rejected
            .iter()
            .map(|rejected| &rejected.id)
            .filter(|id| !admitted.contains(id))
            .cloned()
            .collect(),
    }
}

/// Returns whether a retired id must not be unloaded yet.
fn is_held(retired: &RetiredAdapter) -> bool {
    matches!(retired.state, RetirementState::Waiting | RetirementState::StillInUse | RetirementState::Returning)
}

/// Returns the pattern or id of the spec, and every other id that the Rollout uses.
fn governed(spec: &RolloutSpec, status: &RolloutStatus) -> Vec<String> {
    let mut governed: Vec<String> = spec.adapter.managed_pattern().map(str::to_owned).into_iter().collect();
    let gone = |retired: &&RetiredAdapter| retired.state != RetirementState::Gone;
    let known = status
        .revision
        .stable
        .iter()
        .chain(&status.revision.desired)
        .chain(&status.admission.admitted)
        .chain(status.retired.iter().filter(gone).map(|retired| &retired.id))
        .chain(status.rejected.iter().map(|rejected| &rejected.id));
    for id in known {
        if !governed.iter().any(|pattern| matches_pattern(pattern, id.as_str())) {
            governed.push(id.as_str().to_owned());
        }
    }
    governed
}

/// Returns the entries that none of the patterns and ids `ours` matches.
pub(crate) fn foreign_entries(current: &OperatorDirectives, ours: &[String]) -> OperatorDirectives {
    let is_foreign = |id: &AdapterId| !ours.iter().any(|pattern| matches_pattern(pattern, id.as_str()));
    let foreign = |ids: &[AdapterId]| ids.iter().filter(|id| is_foreign(id)).cloned().collect();
    OperatorDirectives {
        managed: current.managed.iter().filter(|pattern| !ours.contains(pattern)).cloned().collect(),
        admitted: foreign(&current.admitted),
        pilots: current.pilots.iter().filter(|pilot| is_foreign(&pilot.id)).cloned().collect(),
        serving: foreign(&current.serving),
        rejected: foreign(&current.rejected),
    }
}

/// Merges `mine` with those entries of `current` that `others` govern or use.
pub(crate) fn merge(
    current: &OperatorDirectives,
    mine: OperatorDirectives,
    others: &[OperatorDirectives],
) -> OperatorDirectives {
    let is_mine = |id: &str| mine.managed.iter().any(|pattern| matches_pattern(pattern, id));
    let is_theirs = |id: &str| {
        let governs =
            |directives: &OperatorDirectives| directives.managed.iter().any(|pattern| matches_pattern(pattern, id));
        // An id that another Rollout uses stays with it, even if a wider pattern of ours matches.
        let has = |directives: &OperatorDirectives| {
            directives.admitted.iter().chain(&directives.rejected).any(|other| other.as_str() == id)
                || directives.pilots.iter().any(|pilot| pilot.id.as_str() == id)
        };
        others.iter().any(has) || (!is_mine(id) && others.iter().any(governs))
    };
    let kept = |ids: &[AdapterId]| ids.iter().filter(|id| is_theirs(id.as_str())).cloned().collect::<Vec<_>>();
    let pilots: Vec<Pilot> = current.pilots.iter().filter(|pilot| is_theirs(pilot.id.as_str())).cloned().collect();
    let mut directives = OperatorDirectives {
        managed: others.iter().flat_map(|other| other.managed.clone()).collect(),
        admitted: kept(&current.admitted),
        pilots,
        serving: kept(&current.serving),
        rejected: kept(&current.rejected),
    };
    directives.extend(mine);
    normalize(directives)
}

/// Sorts the entries and removes duplicates, so that equal content has equal bytes.
pub(crate) fn normalize(mut directives: OperatorDirectives) -> OperatorDirectives {
    directives.managed.sort_unstable();
    directives.managed.dedup();
    directives.pilots.sort_unstable();
    directives.pilots.dedup();
    for ids in [&mut directives.admitted, &mut directives.serving, &mut directives.rejected] {
        ids.sort_unstable();
        ids.dedup();
    }
    directives
}
