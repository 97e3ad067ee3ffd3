//! The map of this machine: every place where traffic can stand, and every move from one to another, with what brings it
//! about. The machine is held to it by an assertion at each move; that every move of it is made is held by a walk over
//! all that the machine can be told. `ARCHITECTURE.md` shows it.

#[cfg(test)]
mod tests;

use super::TrafficMachine;
use rollora_api::rollout::status::StepState;

/// Where traffic stands: the state of the step, and whether the desired adapter was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TrafficState {
    /// No adapter was ever wanted.
    Initial,
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
pub(crate) enum Trigger {
    /// The residency gate is open: weight is given.
    GateOpened,
    /// Every router has what was written.
    RoutersProven,
    /// A pause is over.
    PauseElapsed,
    /// Ready servers have lacked the adapter for too long.
    ResidencyLost,
    /// The adapter is resident again: its weight comes back.
    ResidencyRestored,
    /// It was rejected by its pilot, ended a server, or missed its deadline.
    Failed,
    /// A person aborts.
    Abort,
    /// A person promotes.
    Promote,
    /// Another adapter is wanted.
    DesiredChanged,
    /// A person wants a rejected adapter tried again.
    Retry,
}

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transition {
    pub(crate) from: TrafficState,
    pub(crate) trigger: Trigger,
    pub(crate) to: TrafficState,
}

use TrafficState::{AwaitingResidency, AwaitingRouters, Held, Initial, Pausing, RolledBack, RollingBack, Succeeded};

/// Where a step begins.
const STEP_START: &[TrafficState] = &[AwaitingResidency, Pausing];

/// Where a wish leads: an id that was rejected before stays so.
const REVISION_START: &[TrafficState] = &[AwaitingResidency, Pausing, RollingBack];

/// Every move there is.
pub(crate) const TRANSITIONS: &[(TrafficState, Trigger, &[TrafficState])] = &[
    (Initial, Trigger::DesiredChanged, REVISION_START),
    (AwaitingResidency, Trigger::GateOpened, &[AwaitingRouters]),
    (AwaitingRouters, Trigger::RoutersProven, &[AwaitingResidency, Pausing, Succeeded]),
    (Pausing, Trigger::PauseElapsed, STEP_START),
    (AwaitingResidency, Trigger::ResidencyLost, &[Held]),
    (AwaitingRouters, Trigger::ResidencyLost, &[Held]),
    (Pausing, Trigger::ResidencyLost, &[Held]),
    (Held, Trigger::ResidencyRestored, &[AwaitingResidency, AwaitingRouters, Pausing]),
    (AwaitingResidency, Trigger::Failed, &[RollingBack]),
    (AwaitingRouters, Trigger::Failed, &[RollingBack]),
    (Pausing, Trigger::Failed, &[RollingBack]),
    (Held, Trigger::Failed, &[RollingBack]),
    (RollingBack, Trigger::RoutersProven, &[RolledBack]),
    (AwaitingResidency, Trigger::Abort, &[RollingBack]),
    (AwaitingRouters, Trigger::Abort, &[RollingBack]),
    (Pausing, Trigger::Abort, &[RollingBack]),
    (Held, Trigger::Abort, &[RollingBack]),
    (Pausing, Trigger::Promote, STEP_START),
    (AwaitingResidency, Trigger::Promote, &[AwaitingResidency]),
    (AwaitingRouters, Trigger::Promote, &[AwaitingResidency]),
    (RollingBack, Trigger::Retry, STEP_START),
    (RolledBack, Trigger::Retry, STEP_START),
    (AwaitingResidency, Trigger::DesiredChanged, REVISION_START),
    (AwaitingRouters, Trigger::DesiredChanged, REVISION_START),
    (Pausing, Trigger::DesiredChanged, REVISION_START),
    (Held, Trigger::DesiredChanged, REVISION_START),
    (Succeeded, Trigger::DesiredChanged, REVISION_START),
    (RollingBack, Trigger::DesiredChanged, REVISION_START),
    (RolledBack, Trigger::DesiredChanged, REVISION_START),
];

impl Transition {
    pub(crate) fn is_allowed(self) -> bool {
        TRANSITIONS.iter().any(|(from, by, to)| *from == self.from && *by == self.trigger && to.contains(&self.to))
    }
}

impl TrafficMachine<'_> {
    /// Where traffic stands now.
    pub(crate) fn current_state(&self) -> TrafficState {
        match (self.step_state(), self.rejection().is_some()) {
            (None, _) => Initial,
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
