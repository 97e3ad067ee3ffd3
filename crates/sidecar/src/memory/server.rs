//! The server as a whole: there, suspect, or away; and who is to blame when it ends.

use super::{Adapter, CallKind, Hold, Memory};
use crate::wish::Standing;
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use rollora_vllm::VllmError;
use std::time::Duration;

/// An adapter over which the server died once is tried again after this time.
const RETRY_AFTER_DEATH: Duration = Duration::from_secs(30);
/// A server whose engine died ends by itself within this time. Until then its old identity counts as dead.
const DYING: Duration = Duration::from_secs(5);

/// How the server is.
#[derive(Debug, Clone, PartialEq)]
pub enum Server {
    /// It cannot be asked; none before the first answer.
    Away {
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
pub struct Known {
    /// Which.
    pub identity: ServerIdentity,
    /// When it was first seen.
    pub since: Timestamp,
    /// Whether it was ready once: then a new adapter takes nothing back.
    pub was_ready: bool,
    /// Its engine is dead; until then it may still answer.
    pub dying_until: Option<Timestamp>,
}

impl Memory {
    /// Whether the server answers and is trusted.
    pub fn is_up(&self) -> bool {
        self.server == Server::Up
    }

    /// The server has been found ready: from now on only its end takes that back.
    pub fn latch_ready(&mut self) {
        if let Some(known) = &mut self.known {
            known.was_ready = true;
        }
    }

    /// The idle connection to the server has closed. Servers that close idle connections while all is well are found
    /// out after two false alarms; from then on it only makes us look.
    pub fn connection_closed(&mut self) {
        if self.is_up() {
            self.looks.alarms += 1;
        }
        if self.looks.alarms > 2 && self.is_up() {
            self.demand_metrics();
        } else {
            self.suspect("the connection to vLLM closed".to_owned());
        }
    }

    /// A connection of somebody else to the server broke.
    pub fn connection_broke(&mut self) {
        self.suspect("a connection to vLLM broke".to_owned());
    }

    /// The server is asked with another key, or trusted through somebody else: what failed for that is tried at once.
    pub fn is_asked_anew(&mut self) {
        let refused = |problem: &ReportedError| ["Unauthorized", "TlsFailed"].contains(&problem.reason.as_str());
        if self.problem.as_ref().is_some_and(refused) {
            self.problem = None;
        }
        for adapter in self.adapters.values_mut() {
            if adapter.hold.is_none() && adapter.last_error.as_ref().is_some_and(refused) {
                adapter.start_afresh();
            }
        }
        self.demand_models();
    }

    /// Something happened that may have been the server's end.
    pub(super) fn suspect(&mut self, reason: String) {
        self.looks.suspected = self.next_sequence();
        if !matches!(self.server, Server::Away { .. }) {
            self.server = Server::Suspect { reason };
        }
    }

    /// The server cannot be asked.
    pub(super) fn away(&mut self, error: &VllmError, now: Timestamp) {
        if !matches!(self.server, Server::Away { .. }) {
            self.process_ended(now);
        }
        self.server = Server::Away { problem: Some(problem(error)) };
    }

    /// The engine is dead, whatever the process around it still answers.
    pub(super) fn engine_died(&mut self, error: &VllmError, now: Timestamp) {
        self.away(error, now);
        if let Some(known) = &mut self.known {
            known.dying_until = Some(now + DYING);
        }
    }

    /// Another process answers.
    pub(super) fn new_process(&mut self, identity: ServerIdentity, now: Timestamp) {
        self.process_ended(now);
        for adapter in self.adapters.values_mut() {
            adapter.verified = false;
            if adapter.hold.is_none() {
                adapter.start_afresh();
            }
        }
        self.recalled_ended();
        self.problem = None;
        self.looks.alarms = 0;
        self.known = Some(Known { identity, since: now, was_ready: false, dying_until: None });
    }

    fn process_ended(&mut self, now: Timestamp) {
        for id in self.blamed() {
            if let Some(adapter) = self.adapters.get_mut(&id) {
                adapter.died(&id, now);
            }
        }
        self.epoch += 1;
        self.hung_on = None;
        for adapter in self.adapters.values_mut() {
            adapter.server_ended();
        }
        self.prune();
    }

    /// Whose load or first use the server's end is put down to: what was under way. An adapter that was proven here
    /// before is innocent as long as there is another.
    fn blamed(&self) -> Vec<AdapterId> {
        let under_way = |adapter: &Adapter| {
            let kind = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.doubt);
            matches!(kind, Some(CallKind::Load | CallKind::Probe))
        };
        let unproven_by_anybody =
            |adapter: &Adapter| adapter.registered.is_some() && !adapter.verified && adapter.wants_loading();
        let chosen = |choose: &dyn Fn(&Adapter) -> bool| -> Vec<&AdapterId> {
            self.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id).collect()
        };
        let groups = [
            chosen(&|adapter| under_way(adapter) && !adapter.is_proven()),
            chosen(&under_way),
            // Nothing was asked by us: a client may have been the first to use one that is registered.
            chosen(&|adapter| unproven_by_anybody(adapter) && !adapter.is_proven()),
        ];
        groups.into_iter().find(|group| !group.is_empty()).unwrap_or_default().into_iter().cloned().collect()
    }
}

impl Adapter {
    /// The server died over it.
    fn died(&mut self, id: &AdapterId, now: Timestamp) {
        self.deaths += 1;
        // One that was proven here before is more likely a victim than the cause: it has one more try, at once.
        let strikes = self.deaths - u32::from(self.is_proven());
        let pilot = self.wish.as_ref().is_some_and(|wish| wish.standing == Standing::Pilot);
        let (hold, next) = match strikes {
            0 => (Hold::Until(now), "it is tried again alone, because it worked here before"),
            1 if pilot => (Hold::Operator, "it is not tried again before the operator says so"),
            1 => (Hold::Until(now + RETRY_AFTER_DEATH), "it is tried again alone, once"),
            _ => (
                Hold::Quarantine,
                "it is not tried again on this server: take its entry out of the file, or mend it under a new id",
            ),
        };
        self.hold = Some(hold);
        self.attempts = self.attempts.max(1);
        self.next_try = None;
        self.needs_person = hold == Hold::Quarantine;
        self.last_error = Some(ReportedError {
            reason: "ServerDied".to_owned(),
            message: format!("vLLM ended while it loaded or first used adapter `{id}`; {next}"),
        });
    }
}

/// An error as a status shows it.
pub(crate) fn problem(error: &VllmError) -> ReportedError {
    ReportedError { reason: error.reason().to_owned(), message: error.to_string() }
}
