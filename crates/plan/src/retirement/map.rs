//! The map of this machine: every state of a retirement and every move from one to another, with what brings it about.
//! The machine is held to it by an assertion; that every move of it is made is held by a walk over all that the machine
//! can be told. `ARCHITECTURE.md` shows it.

#[cfg(test)]
mod tests;

use rollora_api::rollout::status::RetirementState;

/// A state; none while the adapter is in use, or when nobody has to remember it any more.
pub(crate) type Place = Option<RetirementState>;

const IN_USE: Place = None;
const WAITING: Place = Some(RetirementState::Waiting);
const STILL_IN_USE: Place = Some(RetirementState::StillInUse);
const SUGGESTED: Place = Some(RetirementState::Suggested);
const KEPT: Place = Some(RetirementState::Kept);
const UNLISTING: Place = Some(RetirementState::Unlisting);
const UNLOADING: Place = Some(RetirementState::Unloading);
const GONE: Place = Some(RetirementState::Gone);
const RELISTED: Place = Some(RetirementState::Relisted);
const RETURNING: Place = Some(RetirementState::Returning);

/// States in which nothing was begun.
pub(crate) const LOOKING: &[Place] = &[WAITING, STILL_IN_USE, SUGGESTED, KEPT];
/// States after the operator has begun to unlist.
const BEGUN: &[Place] = &[UNLISTING, UNLOADING, GONE];
/// Every state.
const ALL: &[Place] = &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING, GONE, RELISTED, RETURNING];

/// Every move there is: from any of these, to any of those, and when.
pub(crate) const MAP: &[(&[Place], &[Place], &str)] = &[
    (&[IN_USE], &[WAITING], "it lost its weight"),
    (ALL, &[WAITING], "it lost its weight again"),
    (LOOKING, &[WAITING], "routers, quiet, delay, spec.paused"),
    (LOOKING, &[STILL_IN_USE], "somebody uses or names it"),
    (LOOKING, &[SUGGESTED], "policy, owner, or a file that cannot be edited"),
    (LOOKING, &[KEPT], "policy, or not in the file"),
    (LOOKING, &[UNLISTING], "nothing is in its way, and the policy is Unload"),
    (LOOKING, &[UNLOADING], "nothing is in its way, and the file unlists it"),
    (&[UNLISTING], &[UNLOADING], "its entry was moved"),
    (&[UNLISTING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT], "something is in its way before its entry was moved"),
    (&[UNLISTING, UNLOADING, RELISTED], &[GONE], "no server has it"),
    (&[UNLOADING, GONE], &[RELISTED], "somebody listed it again"),
    (&[RELISTED], &[UNLOADING], "somebody unlisted it again"),
    (&[UNLOADING, RELISTED], &[WAITING, STILL_IN_USE, KEPT], "somebody took its entry away"),
    (&[RETURNING], &[WAITING, STILL_IN_USE, SUGGESTED, KEPT, UNLISTING, UNLOADING], "it is not wanted after all"),
    (BEGUN, &[RETURNING], "it is wanted again, and has to be listed"),
    (ALL, &[IN_USE], "it is wanted again"),
];

/// Whether `from` may become `to`.
pub(crate) fn is_on_it(from: Place, to: Place) -> bool {
    from == to || MAP.iter().any(|(froms, tos, _)| froms.contains(&from) && tos.contains(&to))
}

/// A move that is not on the map is a mistake in this machine.
pub(crate) fn assert_is_on_it(from: Place, to: Place) {
    debug_assert!(is_on_it(from, to), "{from:?} to {to:?} is not on the map of retirements");
}
