//! Looking at the server: what is due, and what a look showed.

use super::{CallKind, ServerHealth, SidecarState, TrackedAdapter, server::to_problem};
use crate::spec::{AdapterGoal, LoadPermission};
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
const CLEARED_BY_MODEL_LIST: [&str; 2] = ["Unauthorized", "ShuttingDown"];

/// What to ask the server, beside its health, which is asked always and first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PollRequest {
    /// `/metrics`, before the models: the list belongs to the process that was named, or the connection has closed.
    pub metrics: bool,
    /// `/v1/models`.
    pub models: bool,
}

impl PollRequest {
    const ALL: Self = Self { metrics: true, models: true };
}

/// A look that is under way: what it can tell depends on when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingPoll {
    /// What is asked.
    pub request: PollRequest,
    /// When it began, by events and by time.
    sequence: u64,
    started_at: Timestamp,
    epoch: u64,
}

/// What a look showed; none where it was not asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerObservation {
    /// The metrics; empty where the server keeps them closed.
    pub metrics: Option<ServerMetrics>,
    /// The models.
    pub models: Option<Vec<ModelCard>>,
}

/// A look that failed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollError {
    /// What was asked last.
    pub step: PollStep,
    /// What came of it.
    pub error: VllmError,
}

/// A step of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollStep {
    /// `/health`.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/v1/models`.
    Models,
}

/// When what was asked, and what has to be asked at once.
#[derive(Debug, Clone, Default)]
pub(super) struct PollSchedule {
    in_progress: bool,
    /// When the last look began, by time and by events.
    last_started: Option<(Timestamp, u64)>,
    models_polled_at: Option<Timestamp>,
    metrics_polled_at: Option<Timestamp>,
    /// When somebody last looked at what is told of the server.
    usage_boosted_at: Option<Timestamp>,
    requested: PollRequest,
    /// The event that last raised a suspicion: only a look that began later can tell how the server is.
    pub(super) suspected_sequence: u64,
    /// How often the idle connection closed since the server's process was first seen.
    pub(super) idle_connection_closes: u32,
}

/// Whoever looks is taken to look again within this.
const USAGE_BOOST_DURATION: Duration = Duration::from_secs(4);

impl SidecarState {
    /// Somebody looks at what is told of the server.
    pub fn boost_usage_polls(&mut self, now: Timestamp) {
        self.poll_schedule.usage_boosted_at = Some(now);
    }

    /// What to ask now, if anything.
    pub fn due_poll(&self, now: Timestamp) -> Option<PollRequest> {
        let looks = &self.poll_schedule;
        if looks.in_progress {
            return None;
        }
        let intervals = &self.policy.intervals;
        let Some((began, sequence)) = looks.last_started else { return Some(PollRequest::ALL) };
        let turn = now >= began + intervals.health;
        match self.health {
            ServerHealth::Down { .. } => turn.then_some(PollRequest::ALL),
            ServerHealth::Suspect { .. } => (turn || sequence < looks.suspected_sequence).then_some(PollRequest::ALL),
            ServerHealth::Up => {
                let doubt = self.adapters.values().any(|adapter| adapter.unconfirmed_call.is_some());
                let watched = looks.usage_boosted_at.is_some_and(|watched| now < watched + USAGE_BOOST_DURATION);
                let soon = watched || self.has_retiring_adapter();
                let metrics_interval = if soon { intervals.metrics_retiring } else { intervals.metrics };
                let passed = |asked: Option<Timestamp>, interval| asked.is_none_or(|asked| now >= asked + interval);
                let look = PollRequest {
                    metrics: looks.requested.metrics || passed(looks.metrics_polled_at, metrics_interval),
                    models: looks.requested.models
                        || passed(looks.models_polled_at, intervals.models)
                        || (doubt && turn),
                };
                (turn || look != PollRequest::default()).then_some(look)
            }
        }
    }

    /// When to think again at the latest, if nothing happens before.
    pub fn next_wakeup(&self, now: Timestamp) -> Timestamp {
        let interval = self.policy.intervals.health;
        match self.poll_schedule.last_started {
            Some((began, _)) if !self.poll_schedule.in_progress => now.max(began + interval),
            _ => now + interval,
        }
    }

    /// A look begins.
    pub fn begin_poll(&mut self, look: PollRequest, now: Timestamp) -> PendingPoll {
        let began = self.next_sequence();
        self.poll_schedule.in_progress = true;
        self.poll_schedule.last_started = Some((now, began));
        if look.models {
            self.poll_schedule.models_polled_at = Some(now);
            self.poll_schedule.requested.models = false;
        }
        if look.metrics {
            self.poll_schedule.metrics_polled_at = Some(now);
            self.poll_schedule.requested.metrics = false;
        }
        PendingPoll { request: look, sequence: began, started_at: now, epoch: self.epoch }
    }

    /// A look has ended.
    pub fn finish_poll(&mut self, ticket: PendingPoll, seen: Result<ServerObservation, PollError>, now: Timestamp) {
        self.poll_schedule.in_progress = false;
        if ticket.epoch != self.epoch {
            return;
        }
        match seen {
            Ok(seen) => self.apply_observation(ticket, seen, now),
            Err(PollError { step, error }) => self.apply_poll_error(step, &error, now),
        }
    }

    /// `/metrics` is to be read at once: which process is it, and what is in use?
    pub fn request_metrics_poll(&mut self) {
        self.poll_schedule.requested.metrics = true;
    }

    /// `/v1/models` is to be read at once.
    pub(super) fn request_models_poll(&mut self) {
        self.poll_schedule.requested.models = true;
    }

    /// Whether somebody waits for the end of an adapter's use: it is unwanted, or no Rollout serves by it any more.
    fn has_retiring_adapter(&self) -> bool {
        self.adapters.values().any(|adapter| {
            let retired =
                adapter.spec.as_ref().is_some_and(|wish| wish.permission == LoadPermission::Admitted && !wish.serving);
            let unwanted = matches!(adapter.goal(), AdapterGoal::Absent | AdapterGoal::UnloadHeld { .. });
            adapter.registered.is_some() && (retired || unwanted)
        })
    }

    fn apply_poll_error(&mut self, step: PollStep, error: &VllmError, now: Timestamp) {
        let ended = matches!(error, VllmError::Unreachable { .. } | VllmError::EngineDead { .. })
            || (step == PollStep::Health && matches!(error, VllmError::ServerError { .. }));
        let silent = step == PollStep::Health || matches!(error, VllmError::ConnectionLost { .. });
        match &mut self.health {
            _ if ended => self.mark_down(error, now),
            ServerHealth::Down { problem: shown } => *shown = Some(to_problem(error)),
            ServerHealth::Suspect { reason } => *reason = error.to_string(),
            ServerHealth::Up if silent => self.mark_suspect(error.to_string()),
            ServerHealth::Up if error.is_server_wide() => self.problem = Some(to_problem(error)),
            // The next turn asks again; what was seen before is still the best that is known.
            ServerHealth::Up => {}
        }
    }

    fn apply_observation(&mut self, ticket: PendingPoll, seen: ServerObservation, now: Timestamp) {
        if ticket.sequence < self.poll_schedule.suspected_sequence || (!self.is_up() && seen.models.is_none()) {
            // It may have met the process that is suspected to be gone.
            return;
        }
        let identity = seen.metrics.as_ref().map(|metrics| self.identify_process(metrics, seen.models.as_deref(), now));
        if let Some(metrics) = &seen.metrics {
            self.max_loras = metrics.max_loras.or(self.max_loras);
            self.usage.record(metrics, ticket.started_at, now);
        }
        match (identity, seen.models) {
            (Some(identity), None) if !self.is_known_process(&identity) => {
                self.mark_suspect("vLLM was started again".to_owned());
            }
            (identity, Some(models)) => {
                let fresh = identity.filter(|identity| !self.is_known_process(identity));
                if fresh.is_none() && self.process.as_ref().is_some_and(|known| known.dead_engine_until > Some(now)) {
                    return;
                }
                if let Some(identity) = fresh {
                    self.replace_process(identity, now);
                    self.usage.reset_for_process(ticket.started_at);
                }
                self.health = ServerHealth::Up;
                if self.problem.as_ref().is_some_and(|problem| CLEARED_BY_MODEL_LIST.contains(&problem.reason.as_str()))
                {
                    self.problem = None;
                }
                self.merge_models(&models, ticket.sequence, now);
            }
            (_, None) => {}
        }
    }

    fn is_known_process(&self, identity: &ServerIdentity) -> bool {
        self.process.as_ref().is_some_and(|known| known.identity == *identity)
    }

    /// Which process answered. Where it does not say when it started, it counts as another one after it was away, or
    /// when it was suspect and has forgotten something.
    fn identify_process(
        &self,
        metrics: &ServerMetrics,
        models: Option<&[ModelCard]>,
        now: Timestamp,
    ) -> ServerIdentity {
        let start = metrics.process_start_time.clone().unwrap_or_else(|| {
            let remembers = || {
                let listed: BTreeSet<_> = models.unwrap_or_default().iter().map(|model| model.id.as_str()).collect();
                let mut ours =
                    self.adapters.iter().filter(|(_, adapter)| adapter.registered.is_some()).map(|(id, _)| id);
                ours.clone().next().is_some() && ours.all(|id| listed.contains(id.as_str()))
            };
            match (&self.process, &self.health) {
                (Some(known), ServerHealth::Up) => known.identity.start.clone(),
                (Some(known), ServerHealth::Suspect { .. }) if remembers() => known.identity.start.clone(),
                _ => format!("first seen at {now}"),
            }
        });
        ServerIdentity { endpoint: self.endpoint.clone(), start }
    }

    /// Takes over what the server lists, except where something was asked meanwhile: the list may be older.
    fn merge_models(&mut self, models: &[ModelCard], began: u64, now: Timestamp) {
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
                && adapter.registration_sequence < began
                && let Some(contradiction) = adapter.apply_listing(root)
            {
                adapter.record_contradiction(id, contradiction);
                adapter.next_try = Some(now + backoff.delay(adapter.attempts, 0.0));
            }
        }
        for (id, root) in listed {
            self.adapters.insert(id, TrackedAdapter { registered: Some(root), ..TrackedAdapter::default() });
        }
        self.prune();
        self.prune_usage();
    }
}

impl TrackedAdapter {
    /// The server lists it with this root, or does not list it. Gives what that contradicts in its own last answer.
    fn apply_listing(&mut self, root: Option<String>) -> Option<&'static str> {
        if self.registered != root {
            // Where we know nothing yet of a server that we knew before, what was verified stays verified.
            if self.registered.is_some() {
                self.verified = false;
            }
            self.registered = root;
            if self.registered.is_none() && self.goal() == AdapterGoal::Absent {
                // Gone is gone, whoever did it.
                self.reset_failures();
            }
        }
        // What an earlier run of the sidecar kept counts for what is listed as it was then.
        self.verified &= self.verified_source == self.registered;
        let doubt = self.unconfirmed_call.take();
        let claimed = std::mem::take(&mut self.claimed_by_server);
        if doubt == Some(CallKind::Unload) {
            // It may have been unloaded, and loaded again by somebody else before the list was made.
            self.verified = false;
        }
        match (doubt?, &self.registered) {
            // It was done all the same.
            (CallKind::Load, Some(_)) | (CallKind::Unload, None) => {
                self.reset_failures();
                None
            }
            (CallKind::Load, None) if claimed => Some("it is loaded, and does not list it"),
            (CallKind::Probe, Some(_)) if claimed => Some("it is not loaded, and lists it"),
            (CallKind::Unload, Some(_)) if claimed => Some("it is unloaded, and lists it"),
            _ => None,
        }
    }

    /// The server says one thing and lists another. Who takes it at its word asks the same again at once, without end.
    fn record_contradiction(&mut self, id: &AdapterId, contradiction: &str) {
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
