//! Polls of the server: when they are due, and what their results change.

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

/// Reasons of server problems that a successful model list disproves.
const CLEARED_BY_MODEL_LIST: [&str; 2] = ["Unauthorized", "ShuttingDown"];

/// What a poll reads in addition to `/health`, which every poll reads first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PollRequest {
    /// `/metrics`, before the models: the list belongs to the process that the metrics identify, or the connection
    /// closes in between.
    pub metrics: bool,
    /// `/v1/models`, after the metrics.
    pub models: bool,
}

impl PollRequest {
    const ALL: Self = Self { metrics: true, models: true };
}

/// A poll in flight. Which parts of its result are still valid depends on when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingPoll {
    /// What the poll reads.
    pub request: PollRequest,
    /// When the poll was started, by the event counter.
    sequence: u64,
    started_at: Timestamp,
    epoch: u64,
}

/// The result of a poll; `None` for what it did not read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerObservation {
    /// The metrics; empty if the server does not expose them.
    pub metrics: Option<ServerMetrics>,
    /// The model list of `/v1/models`.
    pub models: Option<Vec<ModelCard>>,
}

/// A failed poll, with the step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollError {
    /// The step that failed.
    pub step: PollStep,
    /// The error of that step.
    pub error: VllmError,
}

/// A step of a poll, in the order of execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollStep {
    /// The read of `/health`.
    Health,
    /// The read of `/metrics`.
    Metrics,
    /// The read of `/v1/models`.
    Models,
}

/// When each endpoint was polled last, and what must be polled immediately.
#[derive(Debug, Clone, Default)]
pub(super) struct PollSchedule {
    in_progress: bool,
    /// When the last poll was started, by time and by the event counter.
    last_started: Option<(Timestamp, u64)>,
    models_polled_at: Option<Timestamp>,
    metrics_polled_at: Option<Timestamp>,
    /// When a client last requested frequent usage polls.
    usage_boosted_at: Option<Timestamp>,
    requested: PollRequest,
    /// The event that last made the server suspect: only a poll that was started later can clear the suspicion.
    pub(super) suspected_sequence: u64,
    /// How often the idle connection closed since the server process was first observed.
    pub(super) idle_connection_closes: u32,
}

/// For how long one request for usage polls lasts; clients repeat it within this time.
const USAGE_BOOST_DURATION: Duration = Duration::from_secs(4);

impl SidecarState {
    /// Polls usage more often for the next seconds, because a client waits for an unload.
    pub fn boost_usage_polls(&mut self, now: Timestamp) {
        self.poll_schedule.usage_boosted_at = Some(now);
    }

    /// Returns what to poll now; `None` if no poll is due.
    pub fn due_poll(&self, now: Timestamp) -> Option<PollRequest> {
        let schedule = &self.poll_schedule;
        if schedule.in_progress {
            return None;
        }
        let intervals = &self.policy.intervals;
        let Some((started_at, sequence)) = schedule.last_started else { return Some(PollRequest::ALL) };
        let interval_over = now >= started_at + intervals.health;
        match self.health {
            ServerHealth::Down { .. } => interval_over.then_some(PollRequest::ALL),
            ServerHealth::Suspect { .. } => {
                (interval_over || sequence < schedule.suspected_sequence).then_some(PollRequest::ALL)
            }
            ServerHealth::Up => {
                let unconfirmed = self.adapters.values().any(|adapter| adapter.unconfirmed_call.is_some());
                let boosted =
                    schedule.usage_boosted_at.is_some_and(|boosted_at| now < boosted_at + USAGE_BOOST_DURATION);
                let frequent = boosted || self.has_retiring_adapter();
                let metrics_interval = if frequent { intervals.metrics_retiring } else { intervals.metrics };
                let is_due = |polled_at: Option<Timestamp>, interval| {
                    polled_at.is_none_or(|polled_at| now >= polled_at + interval)
                };
                let request = PollRequest {
                    metrics: schedule.requested.metrics || is_due(schedule.metrics_polled_at, metrics_interval),
                    models: schedule.requested.models
                        || is_due(schedule.models_polled_at, intervals.models)
                        || (unconfirmed && interval_over),
                };
                (interval_over || request != PollRequest::default()).then_some(request)
            }
        }
    }

    /// Returns when the loop must run again at the latest, if no event happens before.
    pub fn next_wakeup(&self, now: Timestamp) -> Timestamp {
        let interval = self.policy.intervals.health;
        match self.poll_schedule.last_started {
            Some((started_at, _)) if !self.poll_schedule.in_progress => now.max(started_at + interval),
            _ => now + interval,
        }
    }

    /// Records the start of a poll.
    pub fn begin_poll(&mut self, request: PollRequest, now: Timestamp) -> PendingPoll {
        let sequence = self.next_sequence();
        self.poll_schedule.in_progress = true;
        self.poll_schedule.last_started = Some((now, sequence));
        if request.models {
            self.poll_schedule.models_polled_at = Some(now);
            self.poll_schedule.requested.models = false;
        }
        if request.metrics {
            self.poll_schedule.metrics_polled_at = Some(now);
            self.poll_schedule.requested.metrics = false;
        }
        PendingPoll { request, sequence, started_at: now, epoch: self.epoch }
    }

    /// Applies the result of a poll.
    pub fn finish_poll(&mut self, pending: PendingPoll, result: Result<ServerObservation, PollError>, now: Timestamp) {
        self.poll_schedule.in_progress = false;
        if pending.epoch != self.epoch {
            return;
        }
        match result {
            Ok(observation) => self.apply_observation(pending, observation, now),
            Err(PollError { step, error }) => self.apply_poll_error(step, &error, now),
        }
    }

    /// Requests an immediate read of `/metrics`, for the identity of the process and the usage of adapters.
    pub fn request_metrics_poll(&mut self) {
        self.poll_schedule.requested.metrics = true;
    }

    /// Requests an immediate read of `/v1/models`.
    pub(super) fn request_models_poll(&mut self) {
        self.poll_schedule.requested.models = true;
    }

    /// Whether the end of an adapter's use is awaited: it is unwanted, or no Rollout serves it any more.
    fn has_retiring_adapter(&self) -> bool {
        self.adapters.values().any(|adapter| {
            let retired =
                adapter.spec.as_ref().is_some_and(|spec| spec.permission == LoadPermission::Admitted && !spec.serving);
            let unwanted = matches!(adapter.goal(), AdapterGoal::Absent | AdapterGoal::UnloadHeld { .. });
            adapter.registered.is_some() && (retired || unwanted)
        })
    }

    fn apply_poll_error(&mut self, step: PollStep, error: &VllmError, now: Timestamp) {
        let is_down = matches!(error, VllmError::Unreachable { .. } | VllmError::EngineDead { .. })
            || (step == PollStep::Health && matches!(error, VllmError::ServerError { .. }));
        let may_have_ended = step == PollStep::Health || matches!(error, VllmError::ConnectionLost { .. });
        match &mut self.health {
            _ if is_down => self.mark_down(error, now),
            ServerHealth::Down { problem } => *problem = Some(to_problem(error)),
            ServerHealth::Suspect { reason } => *reason = error.to_string(),
            ServerHealth::Up if may_have_ended => self.mark_suspect(error.to_string()),
            ServerHealth::Up if error.is_server_wide() => self.problem = Some(to_problem(error)),
            // The next poll tries again; until then, the previous observation is still the best one.
            ServerHealth::Up => {}
        }
    }

    fn apply_observation(&mut self, pending: PendingPoll, observation: ServerObservation, now: Timestamp) {
        if pending.sequence < self.poll_schedule.suspected_sequence || (!self.is_up() && observation.models.is_none()) {
            // The poll may have reached the process that is suspected to have ended.
            return;
        }
        let identity = observation
            .metrics
            .as_ref()
            .map(|metrics| self.identify_process(metrics, observation.models.as_deref(), now));
        if let Some(metrics) = &observation.metrics {
            self.max_loras = metrics.max_loras.or(self.max_loras);
            self.usage.record(metrics, pending.started_at, now);
        }
        match (identity, observation.models) {
            (Some(identity), None) if !self.is_known_process(&identity) => {
                self.mark_suspect("vLLM was restarted".to_owned());
            }
            (identity, Some(models)) => {
                let new_identity = identity.filter(|identity| !self.is_known_process(identity));
                if new_identity.is_none()
                    && self.process.as_ref().is_some_and(|process| process.dead_engine_until > Some(now))
                {
                    return;
                }
                if let Some(identity) = new_identity {
                    self.replace_process(identity, now);
                    self.usage.reset_for_process(pending.started_at);
                }
                self.health = ServerHealth::Up;
                if self.problem.as_ref().is_some_and(|problem| CLEARED_BY_MODEL_LIST.contains(&problem.reason.as_str()))
                {
                    self.problem = None;
                }
                self.merge_models(&models, pending.sequence, now);
            }
            (_, None) => {}
        }
    }

    fn is_known_process(&self, identity: &ServerIdentity) -> bool {
        self.process.as_ref().is_some_and(|process| process.identity == *identity)
    }

    /// Returns the identity of the process that answered. If the metrics do not name its start, it counts as a new
    /// process after the server was down, or if it was suspect and has lost an adapter.
    fn identify_process(
        &self,
        metrics: &ServerMetrics,
        models: Option<&[ModelCard]>,
        now: Timestamp,
    ) -> ServerIdentity {
        let start = metrics.process_start_time.clone().unwrap_or_else(|| {
            let holds_all_adapters = || {
                let listed: BTreeSet<_> = models.unwrap_or_default().iter().map(|model| model.id.as_str()).collect();
                let mut ours =
                    self.adapters.iter().filter(|(_, adapter)| adapter.registered.is_some()).map(|(id, _)| id);
                ours.clone().next().is_some() && ours.all(|id| listed.contains(id.as_str()))
            };
            match (&self.process, &self.health) {
                (Some(process), ServerHealth::Up) => process.identity.start.clone(),
                (Some(process), ServerHealth::Suspect { .. }) if holds_all_adapters() => process.identity.start.clone(),
                _ => format!("first seen at {now}"),
            }
        });
        ServerIdentity { endpoint: self.endpoint.clone(), start }
    }

    /// Applies a model list, except for adapters with a call since the poll was started: the list may be older.
    fn merge_models(&mut self, models: &[ModelCard], poll_sequence: u64, now: Timestamp) {
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
                && adapter.registration_sequence < poll_sequence
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
    /// Applies the listed root, or `None` if the server does not list the adapter. Returns how that contradicts the
    /// server's own last answer, if it does.
    fn apply_listing(&mut self, root: Option<String>) -> Option<&'static str> {
        if self.registered != root {
            // If the registration is unknown because the same process was unreachable, `verified` is kept.
            if self.registered.is_some() {
                self.verified = false;
            }
            self.registered = root;
            if self.registered.is_none() && self.goal() == AdapterGoal::Absent {
                // The adapter is unloaded, no matter by which client.
                self.reset_failures();
            }
        }
        // Restored verification counts only for the root with which the adapter was verified.
        self.verified &= self.verified_source == self.registered;
        let unconfirmed_call = self.unconfirmed_call.take();
        let claimed = std::mem::take(&mut self.claimed_by_server);
        if unconfirmed_call == Some(CallKind::Unload) {
            // It may have been unloaded, and loaded again by another client before the list was made.
            self.verified = false;
        }
        match (unconfirmed_call?, &self.registered) {
            // The call took effect after all.
            (CallKind::Load, Some(_)) | (CallKind::Unload, None) => {
                self.reset_failures();
                None
            }
            (CallKind::Load, None) if claimed => Some("is loaded, but does not list it"),
            (CallKind::Probe, Some(_)) if claimed => Some("is not loaded, but lists it"),
            (CallKind::Unload, Some(_)) if claimed => Some("is unloaded, but lists it"),
            _ => None,
        }
    }

    /// Records a contradiction between an answer and the model list as a failure, so that retries back off: otherwise
    /// the same call would be repeated immediately and without end.
    fn record_contradiction(&mut self, id: &AdapterId, contradiction: &str) {
        self.attempts += 1;
        self.last_error = Some(ReportedError {
            reason: "Contradiction".to_owned(),
            message: format!(
                "vLLM answers that adapter `{id}` {contradiction}: run one API server process (--api-server-count 1), \
                 and no other client that loads and unloads adapters"
            ),
        });
    }
}
