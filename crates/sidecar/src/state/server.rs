//! The server as a whole: there, suspect, or away; and who is to blame when it ends.

use super::{CallKind, CrashHold, SidecarState, TrackedAdapter};
use crate::spec::LoadPermission;
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use rollora_vllm::VllmError;
use std::time::Duration;

/// An adapter over which the server died once is tried again after this time.
const CRASH_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A server whose engine died ends by itself within this time. Until then its old identity counts as dead.
const DEAD_ENGINE_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How the server is.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerHealth {
    /// It cannot be asked; none before the first answer.
    Down {
        /// Why.
        problem: Option<ReportedError>,
    },
    /// It answered, and then something happened that may have been its end.
    Suspect {
        /// What happened.
        reason: String,
    },
    /// It answers, and what it holds is known.
    Up,
}

/// One process of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerProcess {
    /// Which.
    pub identity: ServerIdentity,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// Whether it was ready once: then a new adapter takes nothing back.
    pub was_ready: bool,
    /// Its engine is dead; until then it may still answer.
    pub dead_engine_until: Option<Timestamp>,
}

impl SidecarState {
    /// Whether the server answers and is trusted.
    pub fn is_up(&self) -> bool {
        self.health == ServerHealth::Up
    }

    /// The server has been found ready: from now on only its end takes that back.
    pub fn latch_ready(&mut self) {
        if let Some(known) = &mut self.process {
            known.was_ready = true;
        }
    }

    /// The idle connection to the server has closed. Servers that close idle connections while all is well are found
    /// out after two false alarms; from then on it only makes us look.
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

    /// A connection of somebody else to the server broke.
    pub fn client_connection_broke(&mut self) {
        self.mark_suspect("a connection to vLLM broke".to_owned());
    }

    /// The server is asked with another key, or trusted through somebody else: what failed for that is tried at once.
    pub fn endpoint_changed(&mut self) {
        let refused = |problem: &ReportedError| ["Unauthorized", "TlsFailed"].contains(&problem.reason.as_str());
        if self.problem.as_ref().is_some_and(refused) {
            self.problem = None;
        }
        for adapter in self.adapters.values_mut() {
            if adapter.crash_hold.is_none() && adapter.last_error.as_ref().is_some_and(refused) {
                adapter.reset_failures();
            }
        }
        self.request_models_poll();
    }

    /// Something happened that may have been the server's end.
    pub(super) fn mark_suspect(&mut self, reason: String) {
        self.poll_schedule.suspected_sequence = self.next_sequence();
        if !matches!(self.health, ServerHealth::Down { .. }) {
            self.health = ServerHealth::Suspect { reason };
        }
    }

    /// The server cannot be asked.
    pub(super) fn mark_down(&mut self, error: &VllmError, now: Timestamp) {
        if !matches!(self.health, ServerHealth::Down { .. }) {
            self.end_process(now);
        }
        self.health = ServerHealth::Down { problem: Some(to_problem(error)) };
    }

    /// The engine is dead, whatever the process around it still answers.
    pub(super) fn mark_engine_dead(&mut self, error: &VllmError, now: Timestamp) {
        self.mark_down(error, now);
        if let Some(known) = &mut self.process {
            known.dead_engine_until = Some(now + DEAD_ENGINE_EXIT_TIMEOUT);
        }
    }

    /// Another process answers.
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

    /// Whose load or first use the server's end is put down to: what was under way. An adapter that was proven here
    /// before is innocent as long as there is another.
    fn blamed_adapters(&self) -> Vec<AdapterId> {
        let under_way = |adapter: &TrackedAdapter| {
            let kind = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.unconfirmed_call);
            matches!(kind, Some(CallKind::Load | CallKind::Probe))
        };
        let unproven_by_anybody =
            |adapter: &TrackedAdapter| adapter.registered.is_some() && !adapter.verified && adapter.wants_loading();
        let chosen = |choose: &dyn Fn(&TrackedAdapter) -> bool| -> Vec<&AdapterId> {
            self.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id).collect()
        };
        let groups = [
            chosen(&|adapter| under_way(adapter) && !adapter.was_verified()),
            chosen(&under_way),
            // Nothing was asked by us: a client may have been the first to use one that is registered.
            chosen(&|adapter| unproven_by_anybody(adapter) && !adapter.was_verified()),
        ];
        groups.into_iter().find(|group| !group.is_empty()).unwrap_or_default().into_iter().cloned().collect()
    }
}

impl TrackedAdapter {
    /// The server died over it.
    fn record_server_crash(&mut self, id: &AdapterId, now: Timestamp) {
        self.server_crashes += 1;
        // One that was proven here before is more likely a victim than the cause: it has one more try, at once.
        let strikes = self.server_crashes - u32::from(self.was_verified());
        let pilot = self.spec.as_ref().is_some_and(|wish| wish.permission == LoadPermission::Pilot);
        let (hold, next) = match strikes {
            0 => (CrashHold::Until(now), "it is tried again alone, because it worked here before"),
            1 if pilot => (CrashHold::AwaitOperator, "it is not tried again before the operator says so"),
            1 => (CrashHold::Until(now + CRASH_RETRY_DELAY), "it is tried again alone, once"),
            _ => (
                CrashHold::Quarantine,
                "it is not tried again on this server: take its entry out of the file, or mend it under a new id",
            ),
        };
        self.crash_hold = Some(hold);
        self.attempts = self.attempts.max(1);
        self.next_try = None;
        self.needs_person = hold == CrashHold::Quarantine;
        self.last_error = Some(ReportedError {
            reason: "ServerDied".to_owned(),
            message: format!("vLLM ended while it loaded or first used adapter `{id}`; {next}"),
        });
    }
}

/// An error as a status shows it.
pub(crate) fn to_problem(error: &VllmError) -> ReportedError {
    ReportedError { reason: error.reason().to_owned(), message: error.to_string() }
}
