//! The steps of a rollout: gate, weights, proof, pause; and the return of the weight when residency is lost.

use super::{
    FULL_WEIGHT, StepProgress, TrafficInputs, TrafficMachine,
    transitions::{TrafficState, Transition, Trigger},
};
use crate::{
    residency,
    routers::shadowed_message,
    text::{self, after, since},
    wait::Wait,
};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    rollout::{
        spec::{OnFailure, Step},
        status::{StepState, StepStatus, TargetWeight},
    },
};
use std::time::Duration;

/// How long a Ready server may lack an adapter that has weight before the weight is returned to stable.
const RESIDENCY_LOSS_TOLERANCE: Duration = Duration::from_secs(10);

impl TrafficMachine<'_> {
    fn step_index(&self) -> usize {
        self.step.as_ref().map_or(0, |step| usize::try_from(step.index).unwrap_or_default())
    }

    fn current_step(&self) -> Option<&Step> {
        self.steps.get(self.step_index())
    }

    /// Describes the current step, as `step 2 of 5` or `the final step` after all configured ones.
    fn describe_step(&self) -> String {
        match self.current_step() {
            Some(_) => format!("step {} of {}", self.step_index() + 1, self.steps.len()),
            None => "the final step".to_owned(),
        }
    }

    /// Begins the step with this index. The index after the last step is the end: all traffic to the desired adapter.
    pub(super) fn enter_step(&mut self, index: usize, trigger: Trigger, now: Timestamp) {
        self.enter_step_from(self.current_state(), index, trigger, now);
    }

    pub(super) fn enter_step_from(&mut self, from: TrafficState, index: usize, trigger: Trigger, now: Timestamp) {
        let pauses = self.steps.get(index).is_some_and(|step| step.pause.is_some());
        self.set_step(index, if pauses { StepState::Pausing } else { StepState::AwaitingResidency }, now);
        self.record_transition(from, trigger);
    }

    /// Begins a step in the given state without recording a transition.
    pub(super) fn set_step(&mut self, index: usize, state: StepState, now: Timestamp) {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        *self.step = Some(StepStatus { index, state, entered_at: now, observed_millis: 0, observed_at: Some(now) });
    }

    pub(super) fn set_state(&mut self, state: StepState, trigger: Trigger, now: Timestamp) {
        self.set_state_from(self.current_state(), state, trigger, now);
    }

    pub(super) fn set_state_from(&mut self, from: TrafficState, state: StepState, trigger: Trigger, now: Timestamp) {
        self.set_step(self.step_index(), state, now);
        self.record_transition(from, trigger);
    }

    /// Records a transition; one that is not in the table is a bug of this machine.
    fn record_transition(&mut self, from: TrafficState, trigger: Trigger) {
        let transition = Transition { from, trigger, to: self.current_state() };
        debug_assert!(transition.is_allowed(), "{transition:?} is not in the transition table of the traffic machine");
        self.transitions.push(transition);
    }

    pub(super) fn await_residency(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        if let Some(wait) = self.gate_wait(inputs) {
            return StepProgress::Wait(Some(wait));
        }
        if let Some(other) = &inputs.proof.shadowed_by {
            return StepProgress::Wait(Some(Wait::soon(reason::SHADOWED_BY, shadowed_message(other))));
        }
        if inputs.paused {
            return StepProgress::Wait(Some(self.paused_wait()));
        }
        let weight = self.weight_at(self.step_index());
        self.set_desired_weight(weight, StepState::AwaitingRouters, Trigger::GateOpened, inputs.now)
    }

    /// Returns what keeps the desired adapter from getting weight.
    fn gate_wait(&self, inputs: TrafficInputs<'_>) -> Option<Wait> {
        let entered = self.step.as_ref().map(|step| text::time(step.entered_at)).unwrap_or_default();
        if let Some(residency_wait) = inputs.residency_wait {
            let message = format!("{} (since {entered})", residency_wait.message);
            return Some(Wait { message, ..residency_wait.clone() });
        }
        let desired = self.revision.desired.as_ref()?;
        let Some(gate) = inputs.gate else {
            return Some(Wait::soon(reason::UNAVAILABLE, "the servers of the pool cannot be listed"));
        };
        if gate.is_open() {
            return None;
        }
        if gate.ready == 0 {
            return Some(Wait::soon(
                reason::NO_READY_PODS,
                format!("no server of the pool is Ready: check the pool's pods (since {entered})"),
            ));
        }
        let message = format!(
            "{desired} is resident on {} of {} Ready servers (since {entered}); {}",
            gate.resident,
            gate.ready,
            text::list(&gate.missing)
        );
        Some(Wait::soon(reason::NOT_RESIDENT, message))
    }

    pub(super) fn await_routers(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        if let Some(wait) = &inputs.proof.wait {
            return StepProgress::Wait(Some(wait.clone()));
        }
        let index = self.step_index();
        if index >= self.steps.len() {
            self.succeed(inputs.now);
            return StepProgress::Wait(None);
        }
        if inputs.paused {
            return StepProgress::Wait(Some(self.paused_wait()));
        }
        self.enter_step(index + 1, Trigger::RoutersProven, inputs.now);
        StepProgress::Continue
    }

    pub(super) fn await_pause(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        if inputs.paused {
            return StepProgress::Wait(Some(self.paused_wait()));
        }
        let entered = self.step.as_ref().map_or(inputs.now, |step| step.entered_at);
        let Some(duration) = self.current_step().and_then(|step| step.pause.as_ref()?.duration) else {
            let message = format!("waits for promotion since {}, at {}", text::time(entered), self.describe_step());
            return StepProgress::Wait(Some(Wait::on_change(reason::AWAITING_PROMOTION, message)));
        };
        let end = after(entered, duration.get());
        if inputs.now < end {
            let message = format!("pauses for {duration}, until {}, at {}", text::time(end), self.describe_step());
            return StepProgress::Wait(Some(Wait::until(reason::PAUSE_STEP, end, message)));
        }
        self.enter_step(self.step_index() + 1, Trigger::PauseElapsed, inputs.now);
        StepProgress::Continue
    }

    fn paused_wait(&self) -> Wait {
        Wait::on_change(
            reason::PAUSED,
            format!("spec.paused is true, at {}: set it to false to continue", self.describe_step()),
        )
    }

    /// Returns the weight of the desired adapter at a step: that of the last `setWeight` up to it.
    fn weight_at(&self, index: usize) -> i32 {
        if index >= self.steps.len() {
            return *self.total_weight;
        }
        self.steps.iter().take(index + 1).rev().find_map(|step| step.set_weight).unwrap_or_default()
    }

    /// Sets the weight of the desired adapter; stable gets the rest.
    fn set_desired_weight(&mut self, weight: i32, state: StepState, trigger: Trigger, now: Timestamp) -> StepProgress {
        let Some(desired) = self.revision.desired.clone() else { return StepProgress::Wait(None) };
        let rest = *self.total_weight - weight;
        let targets = match self.revision.stable.clone().filter(|stable| *stable != desired) {
            Some(stable) if weight <= 0 => vec![TargetWeight { id: stable, weight: FULL_WEIGHT }],
            Some(stable) if rest > 0 => {
                vec![TargetWeight { id: stable, weight: rest }, TargetWeight { id: desired.clone(), weight }]
            }
            _ => vec![TargetWeight { id: desired.clone(), weight: FULL_WEIGHT }],
        };
        self.set_state(state, trigger, now);
        if !self.set_weights(targets, now) {
            return StepProgress::Continue;
        }
        let message = format!("{desired} gets {weight} of {} ({})", self.total_weight, self.describe_step());
        self.record_event(false, reason::PROGRESSING, message.clone());
        StepProgress::Wait(Some(Wait::soon(reason::ROUTERS_PENDING, message)))
    }

    pub(super) fn await_recovery(&mut self, inputs: TrafficInputs<'_>) -> StepProgress {
        if let Some(wait) = self.gate_wait(inputs) {
            let message = format!("the weight was returned to stable: {}", wait.message);
            return StepProgress::Wait(Some(Wait { reason: reason::RESIDENCY_LOST, message, ..wait }));
        }
        let index = self.step_index();
        let desired = self.revision.desired.as_ref().map(ToString::to_string).unwrap_or_default();
        self.record_event(false, reason::PROGRESSING, format!("{desired} is resident again on every Ready server"));
        if self.current_step().is_some_and(|step| step.pause.is_some()) {
            // The pause starts over, because the traffic that it is meant to watch has just returned.
            return self.set_desired_weight(
                self.weight_at(index),
                StepState::Pausing,
                Trigger::ResidencyRestored,
                inputs.now,
            );
        }
        // The weight of the previous step is restored even while paused; this step itself waits.
        let before = if index == 0 { 0 } else { self.weight_at(index - 1) };
        let weight = if inputs.paused { before } else { self.weight_at(index) };
        let state = if inputs.paused { StepState::AwaitingResidency } else { StepState::AwaitingRouters };
        self.set_desired_weight(weight, state, Trigger::ResidencyRestored, inputs.now)
    }

    /// Returns the weight to stable when Ready servers have lacked the adapter for longer than
    /// [`RESIDENCY_LOSS_TOLERANCE`], if every Ready server has stable.
    pub(super) fn check_residency(&mut self, inputs: TrafficInputs<'_>) -> Option<Wait> {
        let desired = self.revision.desired.clone()?;
        let stable = self.revision.stable.clone().filter(|stable| *stable != desired)?;
        if !self.is_unfinished() || self.weight_of(&desired) == 0 {
            *self.lost_since = None;
            return None;
        }
        let servers = inputs.servers?;
        let lacking: Vec<&str> =
            residency::servers_lacking(&desired, servers).iter().map(|server| server.name.as_str()).collect();
        if lacking.is_empty() {
            *self.lost_since = None;
            return None;
        }
        let lost = *self.lost_since.get_or_insert(inputs.now);
        let names = text::list(&lacking);
        if !residency::servers_lacking(&stable, servers).is_empty() {
            let lack = if lacking.len() == 1 { "lacks" } else { "lack" };
            let message = format!(
                "{names} {lack} {desired}, and stable {stable} is not resident on every Ready server either: \
                 make one of the two adapters resident again"
            );
            return Some(Wait::soon(reason::STABLE_NOT_RESIDENT, message));
        }
        if since(lost, inputs.now) < RESIDENCY_LOSS_TOLERANCE {
            let end = after(lost, RESIDENCY_LOSS_TOLERANCE);
            let message = format!("{names} lost {desired}: its weight is returned to stable at {}", text::time(end));
            return Some(Wait::until(reason::RESIDENCY_LOST, end, message));
        }
        *self.lost_since = None;
        self.shift_all_to_stable(inputs.now);
        self.set_state(StepState::Held, Trigger::ResidencyLost, inputs.now);
        self.record_event(true, reason::RESIDENCY_LOST, format!("{names} lost {desired}: all requests go to {stable}"));
        None
    }

    /// Fails a step that has exceeded its deadline. If it cannot fail, or `onFailure` is `Hold`, it reports the
    /// deadline and continues as soon as it can.
    pub(super) fn handle_missed_deadline(&mut self, wait: Option<Wait>, inputs: TrafficInputs<'_>) -> Option<Wait> {
        let limit = inputs.strategy.progress_deadline;
        let cause = wait.as_ref().map_or("nothing changed", |wait| wait.message.as_str());
        let why = format!("{} took longer than {limit} (progressDeadline): {cause}", self.describe_step());
        let can_fail = self.revision.stable.is_some() && self.revision.stable != self.revision.desired;
        if can_fail && inputs.strategy.on_failure == OnFailure::Rollback {
            return self.fail(&why, reason::DEADLINE_EXCEEDED, inputs.servers, inputs.now);
        }
        let requeue = wait.map_or(crate::wait::RequeueWhen::Soon, |wait| wait.requeue);
        Some(Wait { reason: reason::DEADLINE_EXCEEDED, message: why, requeue })
    }
}
