//! The transition table of the traffic machine: every state, every transition and its trigger.
//!
//! The machine asserts that each of its transitions is in the table; a test explores all inputs and shows that each
//! entry of the table is used. `ARCHITECTURE.md` shows the table as a diagram.

#[cfg(test)]
mod tests;

use super::TrafficMachine;
use rollora_api::rollout::status::StepState;

/// The state of the machine, derived from the state of the step and from whether the desired adapter was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TrafficState {
    /// No adapter has been desired yet.
    Initial,
    /// The step waits for the residency gate before it gets its weight.
    AwaitingResidency,
    /// The weight is written, and the routers do not all apply it yet.
    AwaitingRouters,
    /// The step is a pause, timed or until a promotion.
    Pausing,
    /// The weight was returned to stable, because a server lost the adapter.
    Held,
    /// Every router sends all requests to the desired adapter.
    Succeeded,
    /// The desired adapter is rejected, and the routers do not all send its requests to stable yet.
    RollingBack,
    /// The desired adapter is rejected, and every router sends all requests to stable.
    RolledBack,
}

/// The cause of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trigger {
    /// The residency gate is open, so the step gets its weight.
    GateOpened,
    /// Every router applies the written weights.
    RoutersProven,
    /// A timed pause has elapsed.
    PauseElapsed,
    /// Ready servers have lacked the adapter for longer than the tolerance.
    ResidencyLost,
    /// The adapter is resident again, so its weight is restored.
    ResidencyRestored,
    /// The adapter was rejected by its pilot, crashed a server, or exceeded its deadline.
    Failed,
    /// A person aborted the rollout.
    Abort,
    /// A person promoted one step, or all of them.
    Promote,
    /// Another adapter is desired.
    DesiredChanged,
    /// A person asked to try a rejected adapter again.
    Retry,
}

/// One transition of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transition {
    pub(crate) from: TrafficState,
    pub(crate) trigger: Trigger,
    pub(crate) to: TrafficState,
}

use TrafficState::{AwaitingResidency, AwaitingRouters, Held, Initial, Pausing, RolledBack, RollingBack, Succeeded};

/// States in which a step begins.
const STEP_START: &[TrafficState] = &[AwaitingResidency, Pausing];

/// States in which a revision begins; an id that was rejected before stays rejected.
const REVISION_START: &[TrafficState] = &[AwaitingResidency, Pausing, RollingBack];

/// Every transition: the state before, the trigger, and the possible states after.
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
        TRANSITIONS
            .iter()
            .any(|(from, trigger, to)| *from == self.from && *trigger == self.trigger && to.contains(&self.to))
    }
}

impl TrafficMachine<'_> {
    /// Returns the current state.
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
