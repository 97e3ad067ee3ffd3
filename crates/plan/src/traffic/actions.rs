//! What a person can ask for. Each says in words what was done, or why it was not.

use super::{TrafficMachine, transitions::Trigger};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    rollout::{spec::Strategy, status::StepState},
};

/// In words: what was done, or why it was refused.
pub(crate) type IntentResult = Result<String, String>;

impl TrafficMachine<'_> {
    /// Gives all traffic back to stable. Needs no observation at all.
    pub(crate) fn abort(&mut self, now: Timestamp) -> IntentResult {
        let Some(desired) = self.revision.desired.clone() else { return Err("nothing is under way".to_owned()) };
        if self.rejection().is_some() {
            return Err(format!("{desired} is already rejected"));
        }
        if !self.is_unfinished() {
            return Err(format!("{desired} has already succeeded: to go back, list or name the adapter you want"));
        }
        match self.revision.stable.clone() {
            Some(stable) if stable == desired => {
                Err(format!("all requests are on their way to stable {stable} already"))
            }
            Some(stable) => {
                self.reject("somebody aborted the rollout", reason::ABORTED, now);
                Ok(format!("all requests go to {stable}"))
            }
            None if self.weight_of(&desired) > 0 => Err("there is no stable adapter to go back to".to_owned()),
            None => {
                self.reject("somebody aborted the rollout", reason::ABORTED, now);
                Ok(format!("{desired} is not installed"))
            }
        }
    }

    /// Ends the pause that the person saw.
    pub(crate) fn promote(&mut self, seen: Option<i32>, paused: bool, now: Timestamp) -> IntentResult {
        self.check_step(seen, paused)?;
        if self.step_state() != Some(StepState::Pausing) {
            return Err("the step is not a pause: it goes on by itself when it can".to_owned());
        }
        let index = self.step.as_ref().map_or(0, |step| usize::try_from(step.index).unwrap_or_default());
        self.enter_step(index + 1, Trigger::Promote, now);
        Ok(format!("step {} ended", index + 1))
    }

    /// Skips every step that is left; the gates stay.
    pub(crate) fn promote_full(&mut self, seen: Option<i32>, paused: bool, now: Timestamp) -> IntentResult {
        self.check_step(seen, paused)?;
        if self.step.as_ref().is_some_and(|step| usize::try_from(step.index) == Ok(self.steps.len())) {
            return Err("no step is left to skip".to_owned());
        }
        let held = self.step_state() == Some(StepState::Held);
        let (from, end) = (self.current_state(), self.steps.len());
        if held {
            // The gate stays closed: only the step changes.
            self.set_step(end, StepState::Held, now);
        } else {
            self.enter_step_from(from, end, Trigger::Promote, now);
        }
        Ok("every step that was left is skipped".to_owned())
    }

    /// Tries the rejected adapter again, from its first step.
    pub(crate) fn retry(&mut self, strategy: &Strategy, now: Timestamp) -> IntentResult {
        let Some(desired) = self.revision.desired.clone() else { return Err("nothing is wanted yet".to_owned()) };
        if self.rejection().is_none() {
            return Err(format!("{desired} is not rejected"));
        }
        let from = self.current_state();
        self.rejected.retain(|rejected| rejected.id != desired);
        self.begin_revision_from(from, Trigger::Retry, (&desired, strategy, false), now);
        Ok(format!("{desired} is tried again"))
    }

    /// Promotions are bound to the step that the person saw.
    fn check_step(&self, seen: Option<i32>, paused: bool) -> Result<(), String> {
        if !self.is_unfinished() {
            return Err("nothing is under way".to_owned());
        }
        let index = self.step.as_ref().map(|step| step.index);
        if seen.is_some() && seen != index {
            let [seen, index] = [seen, index].map(|index| index.unwrap_or_default() + 1);
            return Err(format!("step {seen} was seen, and step {index} is in force: look again"));
        }
        if paused {
            return Err("spec.paused is true: set it to false first".to_owned());
        }
        Ok(())
    }
}
