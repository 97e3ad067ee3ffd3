//! State of the server as a whole (up, suspect or down), and which adapters are blamed when it ends.

use super::{CallKind, CrashHold, SidecarState, TrackedAdapter};
use crate::spec::LoadPermission;
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use rollora_vllm::VllmError;
use std::time::Duration;

/// Delay of the retry of an adapter after the first server crash.
const CRASH_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A server with a dead engine exits within this time. Until then its process identity counts as dead.
const DEAD_ENGINE_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the server answers.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerHealth {
    /// The server does not answer.
    Down {
        /// The error of the last poll; `None` before the first poll ended.
        problem: Option<ReportedError>,
    },
    /// The server answered before, but an event may have been the end of its process.
    Suspect {
        /// The event, for the readiness message.
        reason: String,
    },
    /// The server answers, and its registered adapters are known.
    Up,
}

/// One process of the server, by its identity.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerProcess {
    /// Endpoint and start time of the process.
    pub identity: ServerIdentity,
    /// When the process was first observed.
    pub first_seen: Timestamp,
    /// Whether the process was ever ready: then a new adapter does not make it unready.
    pub was_ready: bool,
    /// If the engine is dead, the time until which the process may still answer.
    pub dead_engine_until: Option<Timestamp>,
}

impl SidecarState {
    /// Returns whether the server answers and is not suspect.
    pub fn is_up(&self) -> bool {
        self.health == ServerHealth::Up
    }

    /// Records that the server process is ready: from now on only its end makes it unready.
    pub fn latch_ready(&mut self) {
        if let Some(process) = &mut self.process {
            process.was_ready = true;
        }
    }

    /// Handles the end of the idle connection to the server. After two false alarms the server is known to close idle
    /// connections by itself; from then on, an end only requests a poll.
    pub fn idle_connection_closed(&mut self) {
        if self.is_up() {
            self.poll_schedule.idle_connection_closes += 1;
        }
        if self.poll_schedule.idle_connection_closes > 2 && self.is_up() {
            self.request_metrics_poll();
        } else {
            self.mark_suspect("the connection to vLLM closed".to_owned());
        }
    }

    /// Marks the server suspect, because a connection of another client broke.
    pub fn client_connection_broke(&mut self) {
        self.mark_suspect("a connection to vLLM broke".to_owned());
    }

    /// Handles a new API key or new trusted CAs: calls that failed because of the old ones are retried immediately.
    pub fn endpoint_changed(&mut self) {
        let is_refusal = |problem: &ReportedError| ["Unauthorized", "TlsFailed"].contains(&problem.reason.as_str());
        if self.problem.as_ref().is_some_and(is_refusal) {
            self.problem = None;
        }
        for adapter in self.adapters.values_mut() {
            if adapter.crash_hold.is_none() && adapter.last_error.as_ref().is_some_and(is_refusal) {
                adapter.reset_failures();
            }
        }
        self.request_models_poll();
    }

    /// Marks the server suspect, because an event may have been the end of its process.
    pub(super) fn mark_suspect(&mut self, reason: String) {
        self.poll_schedule.suspected_sequence = self.next_sequence();
        if !matches!(self.health, ServerHealth::Down { .. }) {
            self.health = ServerHealth::Suspect { reason };
        }
    }

    /// Marks the server down.
    pub(super) fn mark_down(&mut self, error: &VllmError, now: Timestamp) {
        if !matches!(self.health, ServerHealth::Down { .. }) {
            self.end_process(now);
        }
        self.health = ServerHealth::Down { problem: Some(to_problem(error)) };
    }

    /// Marks the server down because its engine is dead, although its process may still answer.
    pub(super) fn mark_engine_dead(&mut self, error: &VllmError, now: Timestamp) {
        self.mark_down(error, now);
        if let Some(process) = &mut self.process {
            process.dead_engine_until = Some(now + DEAD_ENGINE_EXIT_TIMEOUT);
        }
    }

    /// Replaces the known process by another one that answers.
    pub(super) fn replace_process(&mut self, identity: ServerIdentity, now: Timestamp) {
        self.end_process(now);
        for adapter in self.adapters.values_mut() {
            adapter.verified = false;
            if adapter.crash_hold.is_none() {
                adapter.reset_failures();
            }
        }
        self.invalidate_restored();
        self.problem = None;
        self.poll_schedule.idle_connection_closes = 0;
        self.process = Some(ServerProcess { identity, first_seen: now, was_ready: false, dead_engine_until: None });
    }

    fn end_process(&mut self, now: Timestamp) {
        for id in self.blamed_adapters() {
            if let Some(adapter) = self.adapters.get_mut(&id) {
                adapter.record_server_crash(&id, now);
            }
        }
        self.epoch += 1;
        self.hung_hub_load = None;
        for adapter in self.adapters.values_mut() {
            adapter.clear_process_state();
        }
        self.prune();
    }

    /// Returns the adapters that are blamed for the end of the server: those in flight. An adapter that was verified
    /// here before is not blamed as long as there is another candidate.
    fn blamed_adapters(&self) -> Vec<AdapterId> {
        let in_flight = |adapter: &TrackedAdapter| {
            let kind = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.unconfirmed_call);
            matches!(kind, Some(CallKind::Load | CallKind::Probe))
        };
        let registered_unverified =
            |adapter: &TrackedAdapter| adapter.registered.is_some() && !adapter.verified && adapter.wants_loading();
        let chosen = |choose: &dyn Fn(&TrackedAdapter) -> bool| -> Vec<&AdapterId> {
            self.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id).collect()
        };
        let groups = [
            chosen(&|adapter| in_flight(adapter) && !adapter.was_verified()),
            chosen(&in_flight),
            // The sidecar had no call in flight: a client may have been the first to use a registered adapter.
            chosen(&|adapter| registered_unverified(adapter) && !adapter.was_verified()),
        ];
        groups.into_iter().find(|group| !group.is_empty()).unwrap_or_default().into_iter().cloned().collect()
    }
}

impl TrackedAdapter {
    /// Records that the server crashed during a load or first use of the adapter.
    fn record_server_crash(&mut self, id: &AdapterId, now: Timestamp) {
        self.server_crashes += 1;
        // An adapter that was verified here before is more likely a victim than the cause: it gets one more try,
        // immediately.
        let strikes = self.server_crashes - u32::from(self.was_verified());
        let pilot = self.spec.as_ref().is_some_and(|spec| spec.permission == LoadPermission::Pilot);
        let (crash_hold, next) = match strikes {
            0 => (CrashHold::Until(now), "it will be retried alone, because it worked here before"),
            1 if pilot => (CrashHold::AwaitOperator, "it will not be retried before the operator decides"),
            1 => (CrashHold::Until(now + CRASH_RETRY_DELAY), "it will be retried once, alone"),
            _ => (
                CrashHold::Quarantine,
                "it will not be retried on this server: remove its entry from the file, or fix it under a new id",
            ),
        };
        self.crash_hold = Some(crash_hold);
        self.attempts = self.attempts.max(1);
        self.next_try = None;
        self.needs_person = crash_hold == CrashHold::Quarantine;
        self.last_error = Some(ReportedError {
            reason: "ServerDied".to_owned(),
            message: format!("vLLM ended while it loaded or first used adapter `{id}`; {next}"),
        });
    }
}

/// Converts an error into the form of the status.
pub(crate) fn to_problem(error: &VllmError) -> ReportedError {
    ReportedError { reason: error.reason().to_owned(), message: error.to_string() }
}
