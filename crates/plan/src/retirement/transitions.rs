//! The map of this machine: every state of a retirement and every move from one to another, with what brings it about.
//! The machine is held to it by an assertion; that every move of it is made is held by a walk over all that the machine
//! can be told. `ARCHITECTURE.md` shows it.

#[cfg(test)]
mod tests;

use rollora_api::rollout::status::RetirementState;

/// A state; none while the adapter is in use, or when nobody has to remember it any more.
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

/// States in which nothing was begun.
pub(crate) const EVALUATING: &[OptionalState] = &[WAITING, STILL_IN_USE, SUGGESTED, KEPT];
/// States after the operator has begun to unlist.
const STARTED: &[OptionalState] = &[UNLISTING, UNLOADING, GONE];
/// Every state.
const ALL: &[OptionalState] =
    &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING, GONE, RELISTED, RETURNING];

/// Every move there is: from any of these, to any of those, and when.
pub(crate) const TRANSITIONS: &[(&[OptionalState], &[OptionalState], &str)] = &[
    (&[IN_USE], &[WAITING], "it lost its weight"),
    (ALL, &[WAITING], "it lost its weight again"),
    (EVALUATING, &[WAITING], "routers, quiet, delay, spec.paused"),
    (EVALUATING, &[STILL_IN_USE], "somebody uses or names it"),
    (EVALUATING, &[SUGGESTED], "policy, owner, or a file that cannot be edited"),
    (EVALUATING, &[KEPT], "policy, or not in the file"),
    (EVALUATING, &[UNLISTING], "nothing is in its way, and the policy is Unload"),
    (EVALUATING, &[UNLOADING], "nothing is in its way, and the file unlists it"),
    (&[UNLISTING], &[UNLOADING], "its entry was moved"),
    (&[UNLISTING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT], "something is in its way before its entry was moved"),
    (&[UNLISTING, UNLOADING, RELISTED], &[GONE], "no server has it"),
    (&[UNLOADING, GONE], &[RELISTED], "somebody listed it again"),
    (&[RELISTED], &[UNLOADING], "somebody unlisted it again"),
    (&[UNLOADING, RELISTED], &[WAITING, STILL_IN_USE, KEPT], "somebody took its entry away"),
    (&[RETURNING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING], "it is not wanted after all"),
    (STARTED, &[RETURNING], "it is wanted again, and has to be listed"),
    (ALL, &[IN_USE], "it is wanted again"),
];

/// Whether `from` may become `to`.
pub(crate) fn is_allowed(from: OptionalState, to: OptionalState) -> bool {
    from == to || TRANSITIONS.iter().any(|(froms, tos, _)| froms.contains(&from) && tos.contains(&to))
}

/// A move that is not on the map is a mistake in this machine.
pub(crate) fn assert_allowed(from: OptionalState, to: OptionalState) {
    debug_assert!(is_allowed(from, to), "{from:?} to {to:?} is not on the map of retirements");
}
