//! The vLLM server: what a process of it holds, what it does with a call, and what a look at it shows.

use super::{
    Call, FailedCall, IDS, World,
    steps::{Failure, Fate},
};
use jiff::{SignedDuration, Timestamp};
use rollora_api::names::AdapterId;
use rollora_sidecar::{
    decide::Action,
    memory::{CallKind, Ended, Look, LookError, LookStep, Seen},
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Default)]
pub(super) struct Process {
    pub(super) number: u32,
    pub(super) adapters: BTreeMap<AdapterId, String>,
    pub(super) used: BTreeMap<AdapterId, Timestamp>,
    /// Adapters that answered.
    pub(super) proven: BTreeSet<AdapterId>,
    /// Adapters that it said it had loaded, and that nobody unloaded since.
    pub(super) told: BTreeSet<AdapterId>,
}

impl World {
    pub(super) fn start_server(&mut self) {
        self.started += 1;
        self.server = Some(Process { number: self.started, ..Process::default() });
    }

    pub(super) fn connection_closes(&mut self) {
        self.memory.connection_closed();
        if !self.memory.is_up() {
            self.closed_before = self.server.as_ref().map_or(self.started + 1, |server| server.number);
        }
    }

    pub(super) fn end(&mut self, call: &Call, fate: Fate) {
        let text = format!("{:?}", call.action);
        let lost = || VllmError::ConnectionLost { call: text.clone(), detail: String::new() };
        let same_process = self.server.as_ref().map(|server| server.number) == call.process;
        let answer = match (call.process, fate) {
            (None, _) => Err(VllmError::Unreachable { endpoint: String::new(), detail: String::new() }),
            (Some(_), _) if !same_process => Err(lost()),
            (Some(_), _) if !self.is_idle(&call.action) => {
                return self.memory.ended(call.action.id(), call.epoch, Ended::Skipped, 0.5, self.now);
            }
            (Some(_), Fate::Answered) => self.serve(&call.action),
            (Some(_), Fate::Failed(failure)) => {
                if failure == Failure::Server(true) {
                    drop(self.serve(&call.action));
                }
                Err(failure.error(&text))
            }
            (Some(_), Fate::Late(done) | Fate::Lost(done)) => {
                if done {
                    drop(self.serve(&call.action));
                }
                match fate {
                    Fate::Late(_) => Err(VllmError::Timeout { call: text.clone(), after: Duration::ZERO }),
                    _ => Err(lost()),
                }
            }
        };
        // What is answered by a process that nobody has seen yet is not counted on.
        let known =
            call.epoch == self.memory.epoch() && self.server.as_ref().is_some_and(|server| self.is_known(server));
        if let (Some(server), Ok(()), true) = (&mut self.server, &answer, known) {
            let id = call.action.id().clone();
            match call.action.kind() {
                CallKind::Load => drop(server.told.insert(id)),
                CallKind::Probe => drop(server.proven.insert(id)),
                CallKind::Unload => {}
            }
        }
        let fails_for_sure = matches!(fate, Fate::Failed(failure) if failure != Failure::Server(true));
        if same_process && fails_for_sure && call.epoch == self.memory.epoch() {
            let failed = FailedCall { kind: call.action.kind(), at: self.now, process: self.identity() };
            self.failed.insert(call.action.id().clone(), failed);
        }
        self.memory.ended(call.action.id(), call.epoch, Ended::Answered(answer), 0.5, self.now);
    }

    /// What is asked just before an unload.
    fn is_idle(&self, action: &Action) -> bool {
        let Action::Unload { id, last_used } = action else { return true };
        let used = self.server.as_ref().and_then(|server| server.used.get(id));
        let used = used.filter(|_| !self.manner.metrics_closed);
        let idle = used == last_used.as_ref();
        if let Some(used) = used.filter(|_| idle) {
            let grace = SignedDuration::try_from(self.manner.policy.unload_grace).unwrap();
            let ago = self.now.duration_since(*used);
            assert!(self.manner.metrics_closed || ago >= grace, "used {ago:?} ago: {action:?}");
        }
        idle
    }

    /// What vLLM does with a call.
    pub(super) fn serve(&mut self, action: &Action) -> Result<(), VllmError> {
        let id = action.id().clone();
        let name = IDS.iter().copied().find(|name| *name == id.as_str()).unwrap();
        let deadly = self.deadly.contains(&name) && !matches!(action, Action::Unload { .. });
        if deadly {
            self.server = None;
            *self.killed.entry(name).or_default() += 1;
            return Err(VllmError::ConnectionLost { call: String::new(), detail: "killed".to_owned() });
        }
        let server = self.server.as_mut().unwrap();
        if matches!(action, Action::Unload { .. }) {
            server.told.remove(&id);
        }
        let table = &mut server.adapters;
        match action {
            Action::Load { source, .. } if self.broken.contains(&name) => {
                Err(VllmError::BadAdapter { id, path: source.clone(), detail: String::new() })
            }
            Action::Load { .. } if table.contains_key(&id) => Err(VllmError::AlreadyLoaded { id }),
            Action::Load { source, .. } => {
                table.insert(id, source.clone());
                Ok(())
            }
            Action::Probe { .. } if table.contains_key(&id) => Ok(()),
            Action::Unload { .. } if table.remove(&id).is_some() => Ok(()),
            Action::Probe { .. } | Action::Unload { .. } => Err(VllmError::UnknownAdapter { id }),
        }
    }

    pub(super) fn look_sees(&mut self, fate: Fate) {
        let Some((ticket, seen)) = &mut self.look else { return };
        if seen.is_none() {
            *seen = Some(match (&self.server, fate) {
                (None, _) => Err(LookError {
                    step: LookStep::Health,
                    error: VllmError::Unreachable { endpoint: String::new(), detail: String::new() },
                }),
                (Some(server), Fate::Answered) => {
                    let mut seen = server.shows(ticket.look);
                    if self.manner.metrics_closed && seen.metrics.is_some() {
                        seen.metrics = Some(ServerMetrics::default());
                    }
                    Ok(seen)
                }
                (Some(_), Fate::Late(first)) => Err(LookError {
                    step: if first { LookStep::Health } else { LookStep::Models },
                    error: VllmError::Timeout { call: String::new(), after: Duration::ZERO },
                }),
                (Some(_), Fate::Lost(first)) => Err(LookError {
                    step: if first { LookStep::Metrics } else { LookStep::Models },
                    error: VllmError::ConnectionLost { call: String::new(), detail: String::new() },
                }),
                (Some(_), Fate::Failed(failure)) => {
                    Err(LookError { step: LookStep::Models, error: failure.error("list its models") })
                }
            });
        }
    }

    pub(super) fn look_ends(&mut self, fate: Fate) {
        self.look_sees(fate);
        if let Some((ticket, Some(seen))) = self.look.take() {
            self.memory.looked(ticket, seen, self.now);
        }
    }
}

impl Failure {
    fn error(self, call: &str) -> VllmError {
        let (call, detail) = (call.to_owned(), String::new());
        match self {
            Self::Server(_) => VllmError::ServerError { call, status: 500, detail },
            Self::Unauthorized => VllmError::Unauthorized,
            Self::UpdatingOff => VllmError::RuntimeUpdatingOff,
            Self::ShuttingDown => VllmError::ShuttingDown { call },
            Self::EngineDead => VllmError::EngineDead { call, detail },
            Self::Unexpected => VllmError::UnexpectedResponse { call, status: 429, detail },
        }
    }
}

impl Process {
    fn shows(&self, look: Look) -> Seen {
        let base = ModelCard { id: "base".to_owned(), root: None, parent: None };
        let adapter = |(id, root): (&AdapterId, &String)| ModelCard {
            id: id.to_string(),
            root: Some(root.clone()),
            parent: Some("base".to_owned()),
        };
        Seen {
            metrics: look.metrics.then(|| ServerMetrics {
                process_start_time: Some(self.number.to_string()),
                max_loras: None,
                last_used: self.used.clone(),
                has_statistics: true,
            }),
            models: look.models.then(|| std::iter::once(base).chain(self.adapters.iter().map(adapter)).collect()),
        }
    }
}
