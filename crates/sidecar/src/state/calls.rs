//! Start and end of calls about adapters.

use super::{CallKind, InFlightCall, SidecarState, TrackedAdapter, server::to_problem};
use crate::{decide::AdapterCall, source::is_hub_name};
use jiff::Timestamp;
use rollora_api::names::AdapterId;
use rollora_vllm::VllmError;

/// How a call about an adapter ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// The call was made, with this result.
    Executed(Result<(), VllmError>),
    /// The call was not made, because a check just before it found that it was no longer wanted.
    Skipped,
}

impl SidecarState {
    /// Records that a call is about to be made.
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

    /// Records the outcome of a call that was started in `epoch`; `jitter` (0 to 1) spreads the next attempt.
    pub fn finish_call(&mut self, id: &AdapterId, epoch: u64, outcome: CallOutcome, jitter: f64, now: Timestamp) {
        let sequence = self.next_sequence();
        if epoch != self.epoch {
            // An earlier process may have answered, or this one: the model list decides.
            self.request_models_poll();
            if let Some(adapter) = self.adapters.get_mut(id)
                && let Some(call) = adapter.in_flight.take_if(|call| call.epoch == epoch)
            {
                adapter.registration_sequence = sequence;
                adapter.unconfirmed_call = Some(call.kind);
            }
            return;
        }
        let backoff = self.policy.backoff;
        let Some(adapter) = self.adapters.get_mut(id) else { return };
        let Some(call) = adapter.in_flight.take() else { return };
        adapter.registration_sequence = sequence;
        adapter.claimed_by_server = false;
        let result = match outcome {
            CallOutcome::Executed(result) => result,
            CallOutcome::Skipped => {
                adapter.next_try = Some(now + self.policy.intervals.health);
                self.request_metrics_poll();
                return;
            }
        };
        match result {
            Ok(()) => {
                adapter.record_success(&call);
                self.problem = None;
                if call.kind != CallKind::Unload {
                    self.hung_hub_load = None;
                }
            }
            // The adapter is unloaded, no matter by which client.
            Err(VllmError::UnknownAdapter { .. }) if call.kind == CallKind::Unload => adapter.record_success(&call),
            Err(VllmError::UnknownAdapter { .. } | VllmError::AlreadyLoaded { .. }) => adapter.record_claim(call.kind),
            // A probe may time out behind other requests, which says nothing about its adapter.
            Err(error @ VllmError::Timeout { .. }) if call.kind == CallKind::Probe => {
                adapter.inconclusive_probes += 1;
                adapter.next_try = Some(now + backoff.delay(adapter.inconclusive_probes, jitter));
                adapter.last_error = Some(to_problem(&error));
            }
            Err(error) => {
                let may_hang = call.kind == CallKind::Load && matches!(error, VllmError::Timeout { .. });
                adapter.record_failure(&error);
                if call.kind == CallKind::Load {
                    // The files may be gone: fetch, which checks them, before the next attempt.
                    adapter.fetch.fetched = false;
                }
                adapter.next_try = Some(now + backoff.delay(adapter.attempts, jitter));
                if error.may_have_succeeded() {
                    adapter.unconfirmed_call = Some(call.kind);
                }
                if may_hang && is_hub_name(&call.source) {
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

    /// Applies what a failed call says about the server as a whole.
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
            // The model list must confirm it.
            CallKind::Unload => self.record_claim(CallKind::Unload),
        }
    }

    /// The server claims another registration than the recorded one: the model list decides.
    fn record_claim(&mut self, kind: CallKind) {
        self.unconfirmed_call = Some(kind);
        self.claimed_by_server = true;
    }

    fn record_failure(&mut self, error: &VllmError) {
        // The server went down for another reason, which is no failure of this adapter.
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
