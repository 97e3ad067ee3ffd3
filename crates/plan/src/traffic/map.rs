//! The map of this machine: every place where traffic can stand, and every move from one to another, with what brings it
//! about. The machine is held to it by an assertion at each move; that every move of it is made is held by a walk over
//! all that the machine can be told. `ARCHITECTURE.md` shows it.

#[cfg(test)]
mod tests;

use super::Traffic;
use rollora_api::rollout::status::StepState;

/// Where traffic stands: the state of the step, and whether the desired adapter was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// No adapter was ever wanted.
    Nothing,
    /// The weight of the step waits for the gate.
    AwaitingResidency,
    /// The weight is given, and routers are asked for it.
    AwaitingRouters,
    /// In a pause.
    Pausing,
    /// The weight was taken back, because a server lost the adapter.
    Held,
    /// The desired adapter has everything, at every router.
    Succeeded,
    /// The desired adapter is rejected, and routers are asked whether everything is back.
    RollingBack,
    /// Everything is back at every router.
    RolledBack,
}

/// What brings a move about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// The residency gate is open: weight is given.
    Gate,
    /// Every router has what was written.
    Routers,
    /// A pause is over.
    Time,
    /// Ready servers have lacked the adapter for too long.
    Loss,
    /// The adapter is resident again: its weight comes back.
    Return,
    /// It was rejected by its pilot, ended a server, or missed its deadline.
    Failure,
    /// A person aborts.
    Abort,
    /// A person promotes.
    Promotion,
    /// Another adapter is wanted.
    Wish,
    /// A person wants a rejected adapter tried again.
    Retry,
}

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Move {
    pub(crate) from: Place,
    pub(crate) by: By,
    pub(crate) to: Place,
}

use Place::{AwaitingResidency, AwaitingRouters, Held, Nothing, Pausing, RolledBack, RollingBack, Succeeded};

/// Where a step begins.
const BEGINNING: &[Place] = &[AwaitingResidency, Pausing];

/// Where a wish leads: an id that was rejected before stays so.
const WANTED: &[Place] = &[AwaitingResidency, Pausing, RollingBack];

/// Every move there is.
pub(crate) const MAP: &[(Place, By, &[Place])] = &[
    (Nothing, By::Wish, WANTED),
    (AwaitingResidency, By::Gate, &[AwaitingRouters]),
    (AwaitingRouters, By::Routers, &[AwaitingResidency, Pausing, Succeeded]),
    (Pausing, By::Time, BEGINNING),
    (AwaitingResidency, By::Loss, &[Held]),
    (AwaitingRouters, By::Loss, &[Held]),
    (Pausing, By::Loss, &[Held]),
    (Held, By::Return, &[AwaitingResidency, AwaitingRouters, Pausing]),
    (AwaitingResidency, By::Failure, &[RollingBack]),
    (AwaitingRouters, By::Failure, &[RollingBack]),
    (Pausing, By::Failure, &[RollingBack]),
    (Held, By::Failure, &[RollingBack]),
    (RollingBack, By::Routers, &[RolledBack]),
    (AwaitingResidency, By::Abort, &[RollingBack]),
    (AwaitingRouters, By::Abort, &[RollingBack]),
    (Pausing, By::Abort, &[RollingBack]),
    (Held, By::Abort, &[RollingBack]),
    (Pausing, By::Promotion, BEGINNING),
    (AwaitingResidency, By::Promotion, &[AwaitingResidency]),
    (AwaitingRouters, By::Promotion, &[AwaitingResidency]),
    (RollingBack, By::Retry, BEGINNING),
    (RolledBack, By::Retry, BEGINNING),
    (AwaitingResidency, By::Wish, WANTED),
    (AwaitingRouters, By::Wish, WANTED),
    (Pausing, By::Wish, WANTED),
    (Held, By::Wish, WANTED),
    (Succeeded, By::Wish, WANTED),
    (RollingBack, By::Wish, WANTED),
    (RolledBack, By::Wish, WANTED),
];

impl Move {
    pub(crate) fn is_on_the_map(self) -> bool {
        MAP.iter().any(|(from, by, to)| *from == self.from && *by == self.by && to.contains(&self.to))
    }
}

impl Traffic<'_> {
    /// Where traffic stands now.
    pub(crate) fn standing(&self) -> Place {
        match (self.state(), self.rejection().is_some()) {
            (None, _) => Nothing,
            (Some(StepState::Done), true) => RolledBack,
            (Some(_), true) => RollingBack,
            (Some(StepState::Done), false) => Succeeded,
            (Some(StepState::AwaitingResidency), false) => AwaitingResidency,
            (Some(StepState::AwaitingRouters), false) => AwaitingRouters,
            (Some(StepState::Pausing), false) => Pausing,
            (Some(StepState::Held), false) => Held,
        }
    }
}
