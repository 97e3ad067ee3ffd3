//! What one Rollout adds to the operator's key, and how that is put among the parts of the others.
//!
//! Invariants:
//! - Entries of ids that another Rollout governs, or works with, stay as they are; entries that nobody governs leave.
//! - A rejected id keeps its pilot: whoever has only the key left tries it again there, where it has done its harm.

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

/// The entries of one Rollout.
pub(crate) fn own_directives(spec: &RolloutSpec, status: &RolloutStatus) -> OperatorDirectives {
    let admitted = &status.admission.admitted;
    let rejected = |id: &AdapterId| status.rejected.iter().any(|rejected| rejected.id == *id);
    let harmed = status.admission.past_pilots.iter().filter(|pilot| rejected(&pilot.id));
    let unwanted = |id: &AdapterId| status.retired.iter().any(|retired| retired.id == *id && !is_held(retired));
    OperatorDirectives {
        managed: governed(spec, status),
        admitted: admitted.clone(),
        pilots: status.admission.pilot.iter().chain(harmed).cloned().collect(),
        serving: admitted.iter().filter(|id| !unwanted(id)).chain(&status.admission.retained).cloned().collect(),
        // A rejected id stays admitted until no router sends to it any more.
        rejected: status
            .rejected
            .iter()
            .map(|rejected| &rejected.id)
            .filter(|id| !admitted.contains(id))
            .cloned()
            .collect(),
    }
}

/// Whether a retired id must not be unloaded yet.
fn is_held(retired: &RetiredAdapter) -> bool {
    matches!(retired.state, RetirementState::Waiting | RetirementState::StillInUse | RetirementState::Returning)
}

/// The pattern or id that the Rollout names, and every other id that it has to do with.
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

/// The entries that none of the patterns and ids `ours` matches.
pub(crate) fn foreign_entries(present: &OperatorDirectives, ours: &[String]) -> OperatorDirectives {
    let is_foreign = |id: &AdapterId| !ours.iter().any(|pattern| matches_pattern(pattern, id.as_str()));
    let foreign = |ids: &[AdapterId]| ids.iter().filter(|id| is_foreign(id)).cloned().collect();
    OperatorDirectives {
        managed: present.managed.iter().filter(|pattern| !ours.contains(pattern)).cloned().collect(),
        admitted: foreign(&present.admitted),
        pilots: present.pilots.iter().filter(|pilot| is_foreign(&pilot.id)).cloned().collect(),
        serving: foreign(&present.serving),
        rejected: foreign(&present.rejected),
    }
}

/// The whole key: `mine`, and of what is there the entries that `others` govern.
pub(crate) fn merge(
    present: &OperatorDirectives,
    mine: OperatorDirectives,
    others: &[OperatorDirectives],
) -> OperatorDirectives {
    let is_mine = |id: &str| mine.managed.iter().any(|pattern| matches_pattern(pattern, id));
    let is_theirs = |id: &str| {
        let governs = |key: &OperatorDirectives| key.managed.iter().any(|pattern| matches_pattern(pattern, id));
        // What somebody works with is not taken from them by a wider pattern.
        let has = |key: &OperatorDirectives| {
            key.admitted.iter().chain(&key.rejected).any(|other| other.as_str() == id)
                || key.pilots.iter().any(|pilot| pilot.id.as_str() == id)
        };
        others.iter().any(has) || (!is_mine(id) && others.iter().any(governs))
    };
    let kept = |ids: &[AdapterId]| ids.iter().filter(|id| is_theirs(id.as_str())).cloned().collect::<Vec<_>>();
    let pilots: Vec<Pilot> = present.pilots.iter().filter(|pilot| is_theirs(pilot.id.as_str())).cloned().collect();
    let mut key = OperatorDirectives {
        managed: others.iter().flat_map(|other| other.managed.clone()).collect(),
        admitted: kept(&present.admitted),
        pilots,
        serving: kept(&present.serving),
        rejected: kept(&present.rejected),
    };
    key.extend(mine);
    normalize(key)
}

/// Sorted and without repetitions, so that equal content has equal bytes.
pub(crate) fn normalize(mut key: OperatorDirectives) -> OperatorDirectives {
    key.managed.sort_unstable();
    key.managed.dedup();
    key.pilots.sort_unstable();
    key.pilots.dedup();
    for ids in [&mut key.admitted, &mut key.serving, &mut key.rejected] {
        ids.sort_unstable();
        ids.dedup();
    }
    key
}
