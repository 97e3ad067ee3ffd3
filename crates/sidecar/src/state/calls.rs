//! Calls about adapters: they begin, and they end.

use super::{CallKind, InFlightCall, SidecarState, TrackedAdapter, server::to_problem};
use crate::{decide::AdapterCall, source::is_hub_name};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::VllmError;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// The server answered, or did not.
    Executed(Result<(), VllmError>),
    /// It was not made: just before, it turned out to be unwanted or untimely.
    Skipped,
}

impl SidecarState {
    /// A call is about to be made.
    pub fn begin_call(&mut self, action: &AdapterCall, now: Timestamp) {
        let epoch = self.epoch;
        if let Some(adapter) = self.adapters.get_mut(action.id()) {
            let source = if let AdapterCall::Load { source, .. } = action { source.clone() } else { String::new() };
            adapter.in_flight = Some(InFlightCall { kind: action.kind(), source, started_at: now, epoch });
            if action.kind() == CallKind::Load {
                adapter.crash_hold = None;
            }
        }
    }

    /// A call that was made in `epoch` has ended; `jitter` from 0 to 1 spreads the next attempt.
    pub fn finish_call(&mut self, id: &AdapterId, epoch: u64, ended: CallOutcome, jitter: f64, now: Timestamp) {
        let touched = self.next_sequence();
        if epoch != self.epoch {
            // Another process of the server was asked, or this one was: the list of models tells.
            self.request_models_poll();
            if let Some(adapter) = self.adapters.get_mut(id)
                && let Some(call) = adapter.in_flight.take_if(|call| call.epoch == epoch)
            {
                adapter.registration_sequence = touched;
                adapter.unconfirmed_call = Some(call.kind);
            }
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        let Some(call) = adapter.in_flight.take() else { return };
        adapter.registration_sequence = touched;
        adapter.claimed_by_server = false;
        let answer = match ended {
            CallOutcome::Executed(answer) => answer,
            CallOutcome::Skipped => {
                adapter.next_try = Some(now + self.policy.intervals.health);
                self.request_metrics_poll();
                return;
            }
        };
        match answer {
            Ok(()) => {
                adapter.record_success(&call);
                self.problem = None;
                if call.kind != CallKind::Unload {
                    self.hung_hub_load = None;
                }
            }
            // Gone is gone, whoever did it.
            Err(VllmError::UnknownAdapter { .. }) if call.kind == CallKind::Unload => adapter.record_success(&call),
            Err(VllmError::UnknownAdapter { .. } | VllmError::AlreadyLoaded { .. }) => adapter.record_claim(call.kind),
            // A probe that waits behind others says nothing against its adapter.
            Err(error @ VllmError::Timeout { .. }) if call.kind == CallKind::Probe => {
                adapter.inconclusive_probes += 1;
                adapter.next_try = Some(now + backoff.delay(adapter.inconclusive_probes, jitter));
                adapter.last_error = Some(to_problem(&error));
            }
            Err(error) => {
                let hangs = call.kind == CallKind::Load && matches!(error, VllmError::Timeout { .. });
                adapter.record_failure(&error);
                if call.kind == CallKind::Load {
                    // Perhaps it is not there any more: whoever fetched it looks before the next try.
                    adapter.fetch.fetched = false;
                }
                adapter.next_try = Some(now + backoff.delay(adapter.attempts, jitter));
                if error.may_have_succeeded() {
                    adapter.unconfirmed_call = Some(call.kind);
                }
                if hangs && is_hub_name(&call.source) {
                    self.hung_hub_load = Some(id.clone());
                } else if self.hung_hub_load.as_ref() == Some(id) {
                    self.hung_hub_load = None;
                }
                self.apply_server_error(&error, now);
            }
        }
        if self.adapters.get(id).is_some_and(|adapter| adapter.unconfirmed_call.is_some()) {
            self.request_models_poll();
        }
    }

    /// What a failed call says of the server as a whole.
    fn apply_server_error(&mut self, error: &VllmError, now: Timestamp) {
        match error {
            VllmError::EngineDead { .. } => self.mark_engine_dead(error, now),
            VllmError::Unreachable { .. }
            | VllmError::TlsFailed { .. }
            | VllmError::ConnectionLost { .. }
            | VllmError::ShuttingDown { .. } => {
                self.mark_suspect(error.to_string());
            }
            error if error.is_server_wide() => self.problem = Some(to_problem(error)),
            _ => {}
        }
    }
}

impl TrackedAdapter {
    fn record_success(&mut self, call: &InFlightCall) {
        match call.kind {
            CallKind::Load => {
                self.reset_failures();
                self.registered = Some(call.source.clone());
                self.verified = false;
            }
            CallKind::Probe => {
                self.reset_failures();
                self.verified = true;
                self.verified_source.clone_from(&self.registered);
                self.server_crashes = 0;
                self.crash_hold = None;
            }
            // Confirmed by the list of models.
            CallKind::Unload => self.record_claim(CallKind::Unload),
        }
    }

    /// The server says that its table is not as we believed: the list of models tells.
    fn record_claim(&mut self, kind: CallKind) {
        self.unconfirmed_call = Some(kind);
        self.claimed_by_server = true;
    }

    fn record_failure(&mut self, error: &VllmError) {
        // The server went away over something else: that is nobody's failure.
        if !matches!(
            error,
            VllmError::Unreachable { .. } | VllmError::TlsFailed { .. } | VllmError::ShuttingDown { .. }
        ) {
            self.attempts += 1;
        }
        self.last_error = Some(to_problem(error));
        self.needs_person = error.needs_intervention();
    }
}
