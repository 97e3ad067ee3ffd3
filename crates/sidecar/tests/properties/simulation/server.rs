//! The simulated vLLM server: its adapters, its answers to calls, and its observations in polls.

use super::{
    FailedCall, IDS, SimulatedCall, Simulation,
    steps::{CallDelivery, ServerFailure},
};
use jiff::{SignedDuration, Timestamp};
use rollora_api::names::AdapterId;
use rollora_sidecar::{
    decide::AdapterCall,
    state::{CallKind, CallOutcome, PollError, PollRequest, PollStep, ServerObservation},
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Default)]
pub(super) struct SimulatedProcess {
    pub(super) number: u32,
    pub(super) adapters: BTreeMap<AdapterId, String>,
    pub(super) last_used: BTreeMap<AdapterId, Timestamp>,
    /// Adapters with which it answered a probe.
    pub(super) verified: BTreeSet<AdapterId>,
    /// Adapters whose load it confirmed, and that were not unloaded since.
    pub(super) confirmed_loads: BTreeSet<AdapterId>,
}

impl Simulation {
    pub(super) fn start_server(&mut self) {
        self.processes_started += 1;
        self.server = Some(SimulatedProcess { number: self.processes_started, ..SimulatedProcess::default() });
    }

    pub(super) fn close_connection(&mut self) {
        self.state.idle_connection_closed();
        if !self.state.is_up() {
            self.min_ready_process = self.server.as_ref().map_or(self.processes_started + 1, |server| server.number);
        }
    }

    pub(super) fn finish_call(&mut self, call: &SimulatedCall, delivery: CallDelivery) {
        let text = format!("{:?}", call.action);
        let lost = || VllmError::ConnectionLost { call: text.clone(), detail: String::new() };
        let same_process = self.server.as_ref().map(|server| server.number) == call.process;
        let answer = match (call.process, delivery) {
            (None, _) => Err(VllmError::Unreachable { endpoint: String::new(), detail: String::new() }),
            (Some(_), _) if !same_process => Err(lost()),
            (Some(_), _) if !self.is_idle(&call.action) => {
                return self.state.finish_call(call.action.id(), call.epoch, CallOutcome::Skipped, 0.5, self.now);
            }
            (Some(_), CallDelivery::Answered) => self.execute(&call.action),
            (Some(_), CallDelivery::Failed(failure)) => {
                if failure == ServerFailure::ServerError(true) {
                    drop(self.execute(&call.action));
                }
                Err(failure.to_error(&text))
            }
            (Some(_), CallDelivery::TimedOut(done) | CallDelivery::ConnectionLost(done)) => {
                if done {
                    drop(self.execute(&call.action));
                }
                match delivery {
                    CallDelivery::TimedOut(_) => Err(VllmError::Timeout { call: text.clone(), after: Duration::ZERO }),
                    _ => Err(lost()),
                }
            }
        };
        // An answer of a process that no poll has observed yet does not count.
        let is_known_process =
            call.epoch == self.state.epoch() && self.server.as_ref().is_some_and(|server| self.is_known(server));
        if let (Some(server), Ok(()), true) = (&mut self.server, &answer, is_known_process) {
            let id = call.action.id().clone();
            match call.action.kind() {
                CallKind::Load => drop(server.confirmed_loads.insert(id)),
                CallKind::Probe => drop(server.verified.insert(id)),
                CallKind::Unload => {}
            }
        }
        let has_no_effect =
            matches!(delivery, CallDelivery::Failed(failure) if failure != ServerFailure::ServerError(true));
        if same_process && has_no_effect && call.epoch == self.state.epoch() {
            let failed = FailedCall { kind: call.action.kind(), at: self.now, process: self.known_identity() };
            self.failed.insert(call.action.id().clone(), failed);
        }
        self.state.finish_call(call.action.id(), call.epoch, CallOutcome::Executed(answer), 0.5, self.now);
    }

    /// The check just before an unload: whether the adapter was not used again.
    fn is_idle(&self, action: &AdapterCall) -> bool {
        let AdapterCall::Unload { id, last_used } = action else { return true };
        let used = self.server.as_ref().and_then(|server| server.last_used.get(id));
        let used = used.filter(|_| !self.config.metrics_closed);
        let idle = used == last_used.as_ref();
        if let Some(used) = used.filter(|_| idle) {
            let grace = SignedDuration::try_from(self.config.policy.unload_grace).unwrap();
            let ago = self.now.duration_since(*used);
            assert!(self.config.metrics_closed || ago >= grace, "used {ago:?} ago: {action:?}");
        }
        idle
    }

    /// Executes a call as vLLM does.
    pub(super) fn execute(&mut self, action: &AdapterCall) -> Result<(), VllmError> {
        let id = action.id().clone();
        let name = IDS.iter().copied().find(|name| *name == id.as_str()).unwrap();
        let crashes = self.crashing.contains(&name) && !matches!(action, AdapterCall::Unload { .. });
        if crashes {
            self.server = None;
            *self.crash_counts.entry(name).or_default() += 1;
            return Err(VllmError::ConnectionLost { call: String::new(), detail: "killed".to_owned() });
        }
        let server = self.server.as_mut().unwrap();
        if matches!(action, AdapterCall::Unload { .. }) {
            server.confirmed_loads.remove(&id);
        }
        let table = &mut server.adapters;
        match action {
            AdapterCall::Load { source, .. } if self.broken.contains(&name) => {
                Err(VllmError::BadAdapter { id, path: source.clone(), detail: String::new() })
            }
            AdapterCall::Load { .. } if table.contains_key(&id) => Err(VllmError::AlreadyLoaded { id }),
            AdapterCall::Load { source, .. } => {
                table.insert(id, source.clone());
                Ok(())
            }
            AdapterCall::Probe { .. } if table.contains_key(&id) => Ok(()),
            AdapterCall::Unload { .. } if table.remove(&id).is_some() => Ok(()),
            AdapterCall::Probe { .. } | AdapterCall::Unload { .. } => Err(VllmError::UnknownAdapter { id }),
        }
    }

    pub(super) fn observe_poll(&mut self, delivery: CallDelivery) {
        let Some((pending, observation)) = &mut self.poll else { return };
        if observation.is_none() {
            *observation = Some(match (&self.server, delivery) {
                (None, _) => Err(PollError {
                    step: PollStep::Health,
                    error: VllmError::Unreachable { endpoint: String::new(), detail: String::new() },
                }),
                (Some(server), CallDelivery::Answered) => {
                    let mut observation = server.observe(pending.request);
                    if self.config.metrics_closed && observation.metrics.is_some() {
                        observation.metrics = Some(ServerMetrics::default());
                    }
                    Ok(observation)
                }
                (Some(_), CallDelivery::TimedOut(in_first_step)) => Err(PollError {
                    step: if in_first_step { PollStep::Health } else { PollStep::Models },
                    error: VllmError::Timeout { call: String::new(), after: Duration::ZERO },
                }),
                (Some(_), CallDelivery::ConnectionLost(in_first_step)) => Err(PollError {
                    step: if in_first_step { PollStep::Metrics } else { PollStep::Models },
                    error: VllmError::ConnectionLost { call: String::new(), detail: String::new() },
                }),
                (Some(_), CallDelivery::Failed(failure)) => {
                    Err(PollError { step: PollStep::Models, error: failure.to_error("list its models") })
                }
            });
        }
    }

    pub(super) fn finish_poll(&mut self, delivery: CallDelivery) {
        self.observe_poll(delivery);
        if let Some((pending, Some(observation))) = self.poll.take() {
            self.state.finish_poll(pending, observation, self.now);
        }
    }
}

impl ServerFailure {
    fn to_error(self, call: &str) -> VllmError {
        let (call, detail) = (call.to_owned(), String::new());
        match self {
            Self::ServerError(_) => VllmError::ServerError { call, status: 500, detail },
            Self::Unauthorized => VllmError::Unauthorized,
            Self::RuntimeUpdatingOff => VllmError::RuntimeUpdatingOff,
            Self::ShuttingDown => VllmError::ShuttingDown { call },
            Self::EngineDead => VllmError::EngineDead { call, detail },
            Self::Unexpected => VllmError::UnexpectedResponse { call, status: 429, detail },
        }
    }
}

impl SimulatedProcess {
    fn observe(&self, request: PollRequest) -> ServerObservation {
        let base = ModelCard { id: "base".to_owned(), root: None, parent: None };
        let adapter = |(id, root): (&AdapterId, &String)| ModelCard {
            id: id.to_string(),
            root: Some(root.clone()),
            parent: Some("base".to_owned()),
        };
        ServerObservation {
            metrics: request.metrics.then(|| ServerMetrics {
                process_start_time: Some(self.number.to_string()),
                max_loras: None,
                last_used: self.last_used.clone(),
                has_statistics: true,
            }),
            models: request.models.then(|| std::iter::once(base).chain(self.adapters.iter().map(adapter)).collect()),
        }
    }
}
