//! Calls about adapters: they begin, and they end.

use super::{Adapter, CallKind, InFlight, Memory, server::problem};
use crate::{decide::Action, source::is_hub_name};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::VllmError;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The server answered, or did not.
    Answered(Result<(), VllmError>),
    /// It was not made: just before, it turned out to be unwanted or untimely.
    Skipped,
}

impl Memory {
    /// A call is about to be made.
    pub fn began(&mut self, action: &Action, now: Timestamp) {
        let epoch = self.epoch;
        if let Some(adapter) = self.adapters.get_mut(action.id()) {
            let source = if let Action::Load { source, .. } = action { source.clone() } else { String::new() };
            adapter.in_flight = Some(InFlight { kind: action.kind(), source, since: now, epoch });
            if action.kind() == CallKind::Load {
                adapter.hold = None;
            }
        }
    }

    /// A call that was made in `epoch` has ended; `jitter` from 0 to 1 spreads the next attempt.
    pub fn ended(&mut self, id: &AdapterId, epoch: u64, ended: Ended, jitter: f64, now: Timestamp) {
        let touched = self.next_sequence();
        if epoch != self.epoch {
            // Another process of the server was asked, or this one was: the list of models tells.
            self.demand_models();
            if let Some(adapter) = self.adapters.get_mut(id)
                && let Some(call) = adapter.in_flight.take_if(|call| call.epoch == epoch)
            {
                adapter.touched = touched;
                adapter.doubt = Some(call.kind);
            }
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        let Some(call) = adapter.in_flight.take() else { return };
        adapter.touched = touched;
        adapter.claimed = false;
        let answer = match ended {
            Ended::Answered(answer) => answer,
            Ended::Skipped => {
                adapter.next_try = Some(now + self.policy.intervals.health);
                self.demand_metrics();
                return;
            }
        };
        match answer {
            Ok(()) => {
                adapter.succeeded(&call);
                self.problem = None;
                if call.kind != CallKind::Unload {
                    self.hung_on = None;
                }
            }
            // Gone is gone, whoever did it.
            Err(VllmError::UnknownAdapter { .. }) if call.kind == CallKind::Unload => adapter.succeeded(&call),
            Err(VllmError::UnknownAdapter { .. } | VllmError::AlreadyLoaded { .. }) => adapter.claims(call.kind),
            // A probe that waits behind others says nothing against its adapter.
            Err(error @ VllmError::Timeout { .. }) if call.kind == CallKind::Probe => {
                adapter.undecided += 1;
                adapter.next_try = Some(now + backoff.after(adapter.undecided, jitter));
                adapter.last_error = Some(problem(&error));
            }
            Err(error) => {
                let hangs = call.kind == CallKind::Load && matches!(error, VllmError::Timeout { .. });
                adapter.failed(&error);
                if call.kind == CallKind::Load {
                    // Perhaps it is not there any more: whoever fetched it looks before the next try.
                    adapter.fetch.have = false;
                }
                adapter.next_try = Some(now + backoff.after(adapter.attempts, jitter));
                if error.may_have_succeeded() {
                    adapter.doubt = Some(call.kind);
                }
                if hangs && is_hub_name(&call.source) {
                    self.hung_on = Some(id.clone());
                } else if self.hung_on.as_ref() == Some(id) {
                    self.hung_on = None;
                }
                self.server_said(&error, now);
            }
        }
        if self.adapters.get(id).is_some_and(|adapter| adapter.doubt.is_some()) {
            self.demand_models();
        }
    }

    /// What a failed call says of the server as a whole.
    fn server_said(&mut self, error: &VllmError, now: Timestamp) {
        match error {
            VllmError::EngineDead { .. } => self.engine_died(error, now),
            VllmError::Unreachable { .. }
            | VllmError::TlsFailed { .. }
            | VllmError::ConnectionLost { .. }
            | VllmError::ShuttingDown { .. } => {
                self.suspect(error.to_string());
            }
            error if error.is_server_wide() => self.problem = Some(problem(error)),
            _ => {}
        }
    }
}

impl Adapter {
    fn succeeded(&mut self, call: &InFlight) {
        match call.kind {
            CallKind::Load => {
                self.start_afresh();
                self.registered = Some(call.source.clone());
                self.verified = false;
            }
            CallKind::Probe => {
                self.start_afresh();
                self.verified = true;
                self.proven.clone_from(&self.registered);
                self.deaths = 0;
                self.hold = None;
            }
            // Confirmed by the list of models.
            CallKind::Unload => self.claims(CallKind::Unload),
        }
    }

    /// The server says that its table is not as we believed: the list of models tells.
    fn claims(&mut self, kind: CallKind) {
        self.doubt = Some(kind);
        self.claimed = true;
    }

    fn failed(&mut self, error: &VllmError) {
        // The server went away over something else: that is nobody's failure.
        if !matches!(
            error,
            VllmError::Unreachable { .. } | VllmError::TlsFailed { .. } | VllmError::ShuttingDown { .. }
        ) {
            self.attempts += 1;
        }
        self.last_error = Some(problem(error));
        self.needs_person = error.needs_intervention();
    }
}
