//! Looking at the server: what is due, and what a look showed.

use super::{Adapter, CallKind, Memory, Server, server::problem};
use crate::wish::{Goal, Standing};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What cannot be true any more of a server that has just listed its models.
const DISPROVED_BY_A_LIST: [&str; 2] = ["Unauthorized", "ShuttingDown"];

/// What to ask the server, beside its health, which is asked always and first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// `/metrics`, before the models: the list belongs to the process that was named, or the connection has closed.
    pub metrics: bool,
    /// `/v1/models`.
    pub models: bool,
}

impl Look {
    const EVERYTHING: Self = Self { metrics: true, models: true };
}

/// A look that is under way: what it can tell depends on when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// What is asked.
    pub look: Look,
    /// When it began, by events and by time.
    began: u64,
    at: Timestamp,
    epoch: u64,
}

/// What a look showed; none where it was not asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The metrics; empty where the server keeps them closed.
    pub metrics: Option<ServerMetrics>,
    /// The models.
    pub models: Option<Vec<ModelCard>>,
}

/// A look that failed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookError {
    /// What was asked last.
    pub step: LookStep,
    /// What came of it.
    pub error: VllmError,
}

/// A step of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookStep {
    /// `/health`.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/v1/models`.
    Models,
}

/// When what was asked, and what has to be asked at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    under_way: bool,
    /// When the last look began, by time and by events.
    began: Option<(Timestamp, u64)>,
    models_asked: Option<Timestamp>,
    metrics_asked: Option<Timestamp>,
    /// When somebody last looked at what is told of the server.
    watched: Option<Timestamp>,
    demanded: Look,
    /// The event that last raised a suspicion: only a look that began later can tell how the server is.
    pub(super) suspected: u64,
    /// How often the idle connection closed since the server's process was first seen.
    pub(super) alarms: u32,
}

/// Whoever looks is taken to look again within this.
const WATCHED: Duration = Duration::from_secs(4);

impl Memory {
    /// Somebody looks at what is told of the server.
    pub fn looked_at(&mut self, now: Timestamp) {
        self.looks.watched = Some(now);
    }

    /// What to ask now, if anything.
    pub fn look_due(&self, now: Timestamp) -> Option<Look> {
        let looks = &self.looks;
        if looks.under_way {
            return None;
        }
        let intervals = &self.policy.intervals;
        let Some((began, sequence)) = looks.began else { return Some(Look::EVERYTHING) };
        let turn = now >= began + intervals.health;
        match self.server {
            Server::Away { .. } => turn.then_some(Look::EVERYTHING),
            Server::Suspect { .. } => (turn || sequence < looks.suspected).then_some(Look::EVERYTHING),
            Server::Up => {
                let doubt = self.adapters.values().any(|adapter| adapter.doubt.is_some());
                let watched = looks.watched.is_some_and(|watched| now < watched + WATCHED);
                let soon = watched || self.retiring();
                let metrics_interval = if soon { intervals.metrics_retiring } else { intervals.metrics };
                let passed = |asked: Option<Timestamp>, interval| asked.is_none_or(|asked| now >= asked + interval);
                let look = Look {
                    metrics: looks.demanded.metrics || passed(looks.metrics_asked, metrics_interval),
                    models: looks.demanded.models || passed(looks.models_asked, intervals.models) || (doubt && turn),
                };
                (turn || look != Look::default()).then_some(look)
            }
        }
    }

    /// When to think again at the latest, if nothing happens before.
    pub fn wake(&self, now: Timestamp) -> Timestamp {
        let interval = self.policy.intervals.health;
        match self.looks.began {
            Some((began, _)) if !self.looks.under_way => now.max(began + interval),
            _ => now + interval,
        }
    }

    /// A look begins.
    pub fn look_began(&mut self, look: Look, now: Timestamp) -> Ticket {
        let began = self.next_sequence();
        self.looks.under_way = true;
        self.looks.began = Some((now, began));
        if look.models {
            self.looks.models_asked = Some(now);
            self.looks.demanded.models = false;
        }
        if look.metrics {
            self.looks.metrics_asked = Some(now);
            self.looks.demanded.metrics = false;
        }
        Ticket { look, began, at: now, epoch: self.epoch }
    }

    /// A look has ended.
    pub fn looked(&mut self, ticket: Ticket, seen: Result<Seen, LookError>, now: Timestamp) {
        self.looks.under_way = false;
        if ticket.epoch != self.epoch {
            return;
        }
        match seen {
            Ok(seen) => self.saw(ticket, seen, now),
            Err(LookError { step, error }) => self.look_failed(step, &error, now),
        }
    }

    /// `/metrics` is to be read at once: which process is it, and what is in use?
    pub fn demand_metrics(&mut self) {
        self.looks.demanded.metrics = true;
    }

    /// `/v1/models` is to be read at once.
    pub(super) fn demand_models(&mut self) {
        self.looks.demanded.models = true;
    }

    /// Whether somebody waits for the end of an adapter's use: it is unwanted, or no Rollout serves by it any more.
    fn retiring(&self) -> bool {
        self.adapters.values().any(|adapter| {
            let retired =
                adapter.wish.as_ref().is_some_and(|wish| wish.standing == Standing::Admitted && !wish.serving);
            let unwanted = matches!(adapter.goal(), Goal::Absent | Goal::Held { .. });
            adapter.registered.is_some() && (retired || unwanted)
        })
    }

    fn look_failed(&mut self, step: LookStep, error: &VllmError, now: Timestamp) {
        let ended = matches!(error, VllmError::Unreachable { .. } | VllmError::EngineDead { .. })
            || (step == LookStep::Health && matches!(error, VllmError::ServerError { .. }));
        let silent = step == LookStep::Health || matches!(error, VllmError::ConnectionLost { .. });
        match &mut self.server {
            _ if ended => self.away(error, now),
            Server::Away { problem: shown } => *shown = Some(problem(error)),
            Server::Suspect { reason } => *reason = error.to_string(),
            Server::Up if silent => self.suspect(error.to_string()),
            Server::Up if error.is_server_wide() => self.problem = Some(problem(error)),
            // The next turn asks again; what was seen before is still the best that is known.
            Server::Up => {}
        }
    }

    fn saw(&mut self, ticket: Ticket, seen: Seen, now: Timestamp) {
        if ticket.began < self.looks.suspected || (!self.is_up() && seen.models.is_none()) {
            // It may have met the process that is suspected to be gone.
            return;
        }
        let identity = seen.metrics.as_ref().map(|metrics| self.identity(metrics, seen.models.as_deref(), now));
        if let Some(metrics) = &seen.metrics {
            self.max_loras = metrics.max_loras.or(self.max_loras);
            self.uses.read(metrics, ticket.at, now);
        }
        match (identity, seen.models) {
            (Some(identity), None) if !self.is_known(&identity) => {
                self.suspect("vLLM was started again".to_owned());
            }
            (identity, Some(models)) => {
                let fresh = identity.filter(|identity| !self.is_known(identity));
                if fresh.is_none() && self.known.as_ref().is_some_and(|known| known.dying_until > Some(now)) {
                    return;
                }
                if let Some(identity) = fresh {
                    self.new_process(identity, now);
                    self.uses.of_another_process(ticket.at);
                }
                self.server = Server::Up;
                if self.problem.as_ref().is_some_and(|problem| DISPROVED_BY_A_LIST.contains(&problem.reason.as_str())) {
                    self.problem = None;
                }
                self.merge(&models, ticket.began, now);
            }
            (_, None) => {}
        }
    }

    fn is_known(&self, identity: &ServerIdentity) -> bool {
        self.known.as_ref().is_some_and(|known| known.identity == *identity)
    }

    /// Which process answered. Where it does not say when it started, it counts as another one after it was away, or
    /// when it was suspect and has forgotten something.
    fn identity(&self, metrics: &ServerMetrics, models: Option<&[ModelCard]>, now: Timestamp) -> ServerIdentity {
        let start = metrics.process_start_time.clone().unwrap_or_else(|| {
            let remembers = || {
                let listed: BTreeSet<_> = models.unwrap_or_default().iter().map(|model| model.id.as_str()).collect();
                let mut ours =
                    self.adapters.iter().filter(|(_, adapter)| adapter.registered.is_some()).map(|(id, _)| id);
                ours.clone().next().is_some() && ours.all(|id| listed.contains(id.as_str()))
            };
            match (&self.known, &self.server) {
                (Some(known), Server::Up) => known.identity.start.clone(),
                (Some(known), Server::Suspect { .. }) if remembers() => known.identity.start.clone(),
                _ => format!("first seen at {now}"),
            }
        });
        ServerIdentity { endpoint: self.endpoint.clone(), start }
    }

    /// Takes over what the server lists, except where something was asked meanwhile: the list may be older.
    fn merge(&mut self, models: &[ModelCard], began: u64, now: Timestamp) {
        let backoff = self.policy.backoff;
        self.base_models = models.iter().filter(|model| model.is_base_model()).map(|model| model.id.clone()).collect();
        let mut listed: BTreeMap<AdapterId, String> = models
            .iter()
            .filter(|model| !model.is_base_model())
            .filter_map(|model| Some((AdapterId::new(&model.id).ok()?, model.root.clone().unwrap_or_default())))
            .collect();
        for (id, adapter) in &mut self.adapters {
            let root = listed.remove(id);
            if adapter.in_flight.is_none()
                && adapter.touched < began
                && let Some(contradiction) = adapter.is_listed(root)
            {
                adapter.is_contradicted(id, contradiction);
                adapter.next_try = Some(now + backoff.after(adapter.attempts, 0.0));
            }
        }
        for (id, root) in listed {
            self.adapters.insert(id, Adapter { registered: Some(root), ..Adapter::default() });
        }
        self.prune();
        self.prune_uses();
    }
}

impl Adapter {
    /// The server lists it with this root, or does not list it. Gives what that contradicts in its own last answer.
    fn is_listed(&mut self, root: Option<String>) -> Option<&'static str> {
        if self.registered != root {
            // Where we know nothing yet of a server that we knew before, what was verified stays verified.
            if self.registered.is_some() {
                self.verified = false;
            }
            self.registered = root;
            if self.registered.is_none() && self.goal() == Goal::Absent {
                // Gone is gone, whoever did it.
                self.start_afresh();
            }
        }
        // What an earlier run of the sidecar kept counts for what is listed as it was then.
        self.verified &= self.proven == self.registered;
        let doubt = self.doubt.take();
        let claimed = std::mem::take(&mut self.claimed);
        if doubt == Some(CallKind::Unload) {
            // It may have been unloaded, and loaded again by somebody else before the list was made.
            self.verified = false;
        }
        match (doubt?, &self.registered) {
            // It was done all the same.
            (CallKind::Load, Some(_)) | (CallKind::Unload, None) => {
                self.start_afresh();
                None
            }
            (CallKind::Load, None) if claimed => Some("it is loaded, and does not list it"),
            (CallKind::Probe, Some(_)) if claimed => Some("it is not loaded, and lists it"),
            (CallKind::Unload, Some(_)) if claimed => Some("it is unloaded, and lists it"),
            _ => None,
        }
    }

    /// The server says one thing and lists another. Who takes it at its word asks the same again at once, without end.
    fn is_contradicted(&mut self, id: &AdapterId, contradiction: &str) {
        self.attempts += 1;
        self.last_error = Some(ReportedError {
            reason: "Contradiction".to_owned(),
            message: format!(
                "vLLM says of adapter `{id}` that {contradiction}: run one API server process (--api-server-count 1), \
                 and nobody else who loads and unloads"
            ),
        });
    }
}
