//! The transition table of the retirement machine: every state, every transition and its cause.
//!
//! The machine asserts that each of its transitions is in the table; a test explores all inputs and shows that each
//! entry of the table is used. `ARCHITECTURE.md` shows the table as a diagram.

#[cfg(test)]
mod tests;

use rollora_api::rollout::status::RetirementState;

/// The state of an id; `None` while the adapter is in use, or when its entry has been dropped.
pub(crate) type OptionalState = Option<RetirementState>;

const IN_USE: OptionalState = None;
const WAITING: OptionalState = Some(RetirementState::Waiting);
const STILL_IN_USE: OptionalState = Some(RetirementState::StillInUse);
const SUGGESTED: OptionalState = Some(RetirementState::Suggested);
const KEPT: OptionalState = Some(RetirementState::Kept);
const UNLISTING: OptionalState = Some(RetirementState::Unlisting);
const UNLOADING: OptionalState = Some(RetirementState::Unloading);
const GONE: OptionalState = Some(RetirementState::Gone);
const RELISTED: OptionalState = Some(RetirementState::Relisted);
const RETURNING: OptionalState = Some(RetirementState::Returning);

/// States in which nothing has begun yet.
pub(crate) const EVALUATING: &[OptionalState] = &[WAITING, STILL_IN_USE, SUGGESTED, KEPT];
/// States after the operator has begun to unlist.
const STARTED: &[OptionalState] = &[UNLISTING, UNLOADING, GONE];
/// Every state of a retirement entry.
const ALL: &[OptionalState] =
    &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING, GONE, RELISTED, RETURNING];

/// Every transition: from any of the first states, to any of the second, and its cause.
pub(crate) const TRANSITIONS: &[(&[OptionalState], &[OptionalState], &str)] = &[
    (&[IN_USE], &[WAITING], "it lost its weight"),
    (ALL, &[WAITING], "it lost its weight again"),
    (EVALUATING, &[WAITING], "routers, recent use, delay or spec.paused"),
    (EVALUATING, &[STILL_IN_USE], "it is used or referenced"),
    (EVALUATING, &[SUGGESTED], "policy, GitOps owner, or a file that cannot be edited"),
    (EVALUATING, &[KEPT], "policy, or in neither list of the file"),
    (EVALUATING, &[UNLISTING], "nothing blocks it, and the policy is Unload"),
    (EVALUATING, &[UNLOADING], "nothing blocks it, and it is under ensureNotExist"),
    (&[UNLISTING], &[UNLOADING], "its entry was moved"),
    (&[UNLISTING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT], "something blocks it before its entry was moved"),
    (&[UNLISTING, UNLOADING, RELISTED], &[GONE], "no server has it"),
    (&[UNLOADING, GONE], &[RELISTED], "another writer listed it again"),
    (&[RELISTED], &[UNLOADING], "another writer unlisted it again"),
    (&[UNLOADING, RELISTED], &[WAITING, STILL_IN_USE, KEPT], "another writer removed its entry"),
    (&[RETURNING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING], "it is no longer needed"),
    (STARTED, &[RETURNING], "it is needed again, and must be listed"),
    (ALL, &[IN_USE], "it is needed again"),
];

/// Returns whether `from` may become `to`.
pub(crate) fn is_allowed(from: OptionalState, to: OptionalState) -> bool {
    from == to || TRANSITIONS.iter().any(|(froms, tos, _)| froms.contains(&from) && tos.contains(&to))
}

/// Asserts that the transition is in the table; any other is a bug of this machine.
pub(crate) fn assert_allowed(from: OptionalState, to: OptionalState) {
    debug_assert!(is_allowed(from, to), "{from:?} to {to:?} is not in the transition table of retirements");
}
