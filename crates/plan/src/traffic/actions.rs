//! The intents of a person: abort, promote, promote to the end, retry.

use super::{TrafficMachine, transitions::Trigger};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    rollout::{spec::Strategy, status::StepState},
};

/// A message: what was done, or why the intent was refused.
pub(crate) type IntentResult = Result<String, String>;

impl TrafficMachine<'_> {
    /// Returns all traffic to stable. Needs no observation at all.
    pub(crate) fn abort(&mut self, now: Timestamp) -> IntentResult {
        let Some(desired) = self.revision.desired.clone() else { return Err("nothing is in progress".to_owned()) };
        if self.rejection().is_some() {
            return Err(format!("{desired} is already rejected"));
        }
        if !self.is_unfinished() {
            return Err(format!(
                "{desired} has already succeeded: to go back, set spec.adapter.id to the earlier adapter, or list its \
                 weights under a higher version"
            ));
        }
        match self.revision.stable.clone() {
            Some(stable) if stable == desired => {
                Err(format!("all requests are being moved to stable {stable} already"))
            }
            Some(stable) => {
                self.reject("a person aborted the rollout", reason::ABORTED, now);
                Ok(format!("all requests go to {stable}"))
            }
            None if self.weight_of(&desired) > 0 => Err("there is no stable adapter to roll back to".to_owned()),
            None => {
                self.reject("a person aborted the rollout", reason::ABORTED, now);
                Ok(format!("{desired} is not installed: it was rejected before it got weight"))
            }
        }
    }

    /// Ends the pause at `expected_step`, which is the step that the person saw.
    pub(crate) fn promote(&mut self, expected_step: Option<i32>, paused: bool, now: Timestamp) -> IntentResult {
        self.check_step(expected_step, paused)?;
        if self.step_state() != Some(StepState::Pausing) {
            return Err("the current step is not a pause: it continues without a promotion".to_owned());
        }
        let index = self.step.as_ref().map_or(0, |step| usize::try_from(step.index).unwrap_or_default());
        self.enter_step(index + 1, Trigger::Promote, now);
        Ok(format!("the pause of step {} is ended", index + 1))
    }

    /// Skips all remaining steps. The residency gate and the router proof still apply.
    pub(crate) fn promote_full(&mut self, expected_step: Option<i32>, paused: bool, now: Timestamp) -> IntentResult {
        self.check_step(expected_step, paused)?;
        if self.step.as_ref().is_some_and(|step| usize::try_from(step.index) == Ok(self.steps.len())) {
            return Err("no steps remain to be skipped".to_owned());
        }
        let held = self.step_state() == Some(StepState::Held);
        let (from, end) = (self.current_state(), self.steps.len());
        if held {
            // The gate is closed, so the state stays and only the step changes.
            self.set_step(end, StepState::Held, now);
        } else {
            self.enter_step_from(from, end, Trigger::Promote, now);
        }
        Ok("all remaining steps are skipped".to_owned())
    }

    /// Tries the rejected adapter again, from the first step.
    pub(crate) fn retry(&mut self, strategy: &Strategy, now: Timestamp) -> IntentResult {
        let Some(desired) = self.revision.desired.clone() else { return Err("nothing is desired yet".to_owned()) };
        if self.rejection().is_none() {
            return Err(format!("{desired} is not rejected"));
        }
        let from = self.current_state();
        self.rejected.retain(|rejected| rejected.id != desired);
        self.begin_revision_from(from, Trigger::Retry, (&desired, strategy, false), now);
        Ok(format!("{desired} is tried again"))
    }

    /// Checks that the rollout is still at the step that the person saw, and not paused.
    fn check_step(&self, expected_step: Option<i32>, paused: bool) -> Result<(), String> {
        if !self.is_unfinished() {
            return Err("nothing is in progress".to_owned());
        }
        let index = self.step.as_ref().map(|step| step.index);
        if expected_step.is_some() && expected_step != index {
            let [expected_step, index] = [expected_step, index].map(|index| index.unwrap_or_default() + 1);
            return Err(format!(
                "it was requested for step {expected_step}, but step {index} is current: check the status and \
                 request it again"
            ));
        }
        if paused {
            return Err("spec.paused is true: set it to false first".to_owned());
        }
        Ok(())
    }
}
