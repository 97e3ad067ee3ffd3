//! The outcome of an answer: the reported state of the adapter and of the server, and the next calls.

use crate::reply::{ParsedReply, RequestKind, ServerReply, send_request};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
};
use rollora_sidecar::{
    SidecarPolicy,
    decide::{AdapterCall, decide},
    state::{CallKind, CallOutcome, PollError, PollRequest, PollStep, ServerObservation, SidecarState},
    status::status,
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{collections::BTreeMap, fmt, time::Duration};

/// The outcome of an answer, as the matrix writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyOutcome {
    /// The state of the adapter, the reason of its error, and `person` if only a person can resolve it.
    pub(crate) adapter: String,
    /// `up` and the reason of a problem, or the readiness reason.
    pub(crate) server: String,
    /// The next steps: an immediate `poll`, a delay, a call; or `nothing`.
    pub(crate) next: String,
}

impl fmt::Display for ReplyOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {:?}", self.adapter, self.server, self.next)
    }
}

impl ReplyOutcome {
    /// Sends the request to a server that gives this answer, and returns the outcome.
    pub(crate) async fn from_reply(request_kind: RequestKind, reply: &ServerReply) -> Self {
        let result = send_request(request_kind, reply).await;
        let mut fixture = ReplyFixture::prepare(request_kind, &reply.adapter_id());
        fixture.deliver(request_kind, result);
        fixture.outcome()
    }
}

/// The state of a sidecar, and a server that shows its adapter table.
struct ReplyFixture {
    state: SidecarState,
    now: Timestamp,
    id: AdapterId,
    table: BTreeMap<String, String>,
}

const SOURCE: &str = "/adapters/a1";

impl ReplyFixture {
    /// Creates the state in which the request is due, with a server that was ready.
    fn prepare(request_kind: RequestKind, id: &AdapterId) -> Self {
        let mut fixture = Self {
            state: SidecarState::new("http://server", SidecarPolicy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            id: id.clone(),
            table: BTreeMap::new(),
        };
        if request_kind != RequestKind::Load {
            fixture.table.insert(id.to_string(), SOURCE.to_owned());
        }
        fixture.poll();
        fixture.set_desired(true);
        if !matches!(request_kind, RequestKind::Load | RequestKind::Probe) {
            fixture.begin_call();
            fixture.finish_call(Ok(()));
            fixture.state.latch_ready();
        }
        if request_kind == RequestKind::Unload {
            fixture.set_desired(false);
        }
        if matches!(request_kind, RequestKind::Load | RequestKind::Probe | RequestKind::Unload) {
            let kind = fixture.begin_call();
            let expected = match request_kind {
                RequestKind::Load => CallKind::Load,
                RequestKind::Probe => CallKind::Probe,
                _ => CallKind::Unload,
            };
            assert_eq!(kind, expected);
        } else {
            fixture.now += Duration::from_mins(1);
        }
        fixture
    }

    fn set_desired(&mut self, listed: bool) {
        let entry = AdapterEntry { id: self.id.clone(), source: SOURCE.to_owned(), base_model: None, required: false };
        let mut file = AdaptersFile::default();
        if listed { &mut file.ensure_exist } else { &mut file.ensure_not_exist }.push(entry);
        self.state.set_desired(
            &DesiredAdapters { file, directives: None, hash: ContentHash::default() },
            "pod",
            self.now,
        );
    }

    /// Starts the one call that is decided.
    fn begin_call(&mut self) -> CallKind {
        let actions = decide(&self.state, self.now);
        let [action] = actions.as_slice() else { panic!("{actions:?}") };
        self.state.begin_call(action, self.now);
        action.kind()
    }

    fn finish_call(&mut self, result: Result<(), VllmError>) {
        self.state.finish_call(&self.id.clone(), self.state.epoch(), CallOutcome::Executed(result), 0.0, self.now);
    }

    /// Applies the answer to the state.
    fn deliver(&mut self, request_kind: RequestKind, result: Result<ParsedReply, VllmError>) {
        let step = match request_kind {
            RequestKind::Health => PollStep::Health,
            RequestKind::Models => PollStep::Models,
            RequestKind::Metrics => PollStep::Metrics,
            RequestKind::Load | RequestKind::Probe | RequestKind::Unload => {
                let result = result.map(drop);
                self.apply_to_table(request_kind, &result);
                return self.finish_call(result);
            }
        };
        let pending = self.state.begin_poll(PollRequest { metrics: true, models: true }, self.now);
        let mut observation = self.observe();
        let result = match result {
            Ok(ParsedReply::Models(models)) => {
                // The recorded base models, with the adapter of the fixture.
                let adapters =
                    observation.models.unwrap_or_default().into_iter().filter(|model| !model.is_base_model());
                observation.models =
                    Some(models.into_iter().filter(ModelCard::is_base_model).chain(adapters).collect());
                Ok(observation)
            }
            Ok(ParsedReply::Metrics(metrics)) => {
                observation.metrics = Some(metrics);
                Ok(observation)
            }
            Ok(ParsedReply::Done) => Ok(observation),
            // As in a poll: a server may not expose its metrics.
            Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. })
                if request_kind == RequestKind::Metrics =>
            {
                observation.metrics = Some(ServerMetrics::default());
                Ok(observation)
            }
            Err(error) => Err(PollError { step, error }),
        };
        self.state.finish_poll(pending, result, self.now);
    }

    /// Changes the adapter table as the answer claims.
    fn apply_to_table(&mut self, request_kind: RequestKind, result: &Result<(), VllmError>) {
        match (request_kind, result) {
            (RequestKind::Load, Ok(()) | Err(VllmError::AlreadyLoaded { .. })) => {
                self.table.insert(self.id.to_string(), SOURCE.to_owned());
            }
            (RequestKind::Unload, Ok(())) | (_, Err(VllmError::UnknownAdapter { .. })) => {
                self.table.remove(self.id.as_str());
            }
            _ => {}
        }
    }

    fn observe(&self) -> ServerObservation {
        let card = |id: &str, root: &str, parent: Option<&str>| ModelCard {
            id: id.to_owned(),
            root: Some(root.to_owned()),
            parent: parent.map(str::to_owned),
        };
        let adapters = self.table.iter().map(|(id, root)| card(id, root, Some("base")));
        ServerObservation {
            metrics: Some(ServerMetrics {
                process_start_time: Some("1".to_owned()),
                has_statistics: true,
                ..ServerMetrics::default()
            }),
            models: Some(std::iter::once(card("base", "/base", None)).chain(adapters).collect()),
        }
    }

    /// Polls a healthy server.
    fn poll(&mut self) {
        let pending = self.state.begin_poll(PollRequest { metrics: true, models: true }, self.now);
        let observation = self.observe();
        self.state.finish_poll(pending, Ok(observation), self.now);
    }

    fn outcome(mut self) -> ReplyOutcome {
        let status = status(&self.state, self.now);
        let adapter = status.adapter(&self.id).map_or_else(String::new, |adapter| {
            let error = adapter.last_error.as_ref().map(|error| error.reason.clone());
            let person = self.state.adapters[&self.id].needs_person.then(|| "person".to_owned());
            let parts: Vec<_> = std::iter::once(format!("{:?}", adapter.state)).chain(error).chain(person).collect();
            parts.join(" ")
        });
        let server = match (&status.server, &status.problem) {
            (Some(_), None) if self.state.is_up() => "up".to_owned(),
            (Some(_), Some(problem)) if self.state.is_up() => format!("up {}", problem.reason),
            _ => status.readiness.reason.clone(),
        };
        ReplyOutcome { adapter, server, next: self.next_calls() }
    }

    /// Returns the next calls to a server that has recovered.
    fn next_calls(&mut self) -> String {
        let mut next = Vec::new();
        let started = self.now;
        while self.now < started + Duration::from_mins(10) {
            let actions = decide(&self.state, self.now);
            if let Some(action) = actions.first() {
                let delay = self.now.duration_since(started).as_secs_f64();
                if delay > 0.0 {
                    next.push(format!("{delay} s"));
                }
                let name = match action {
                    AdapterCall::Load { .. } => "load",
                    AdapterCall::Probe { .. } => "probe",
                    AdapterCall::Unload { .. } => "unload",
                };
                next.push(name.to_owned());
                return next.join(", ");
            }
            if let Some(request) = self.state.due_poll(self.now) {
                let is_immediate = self.now == started && request.models;
                if is_immediate {
                    next.push("poll".to_owned());
                }
                self.poll();
            }
            if decide(&self.state, self.now).is_empty() {
                self.now += Duration::from_millis(250);
            }
        }
        next.push("nothing".to_owned());
        next.join(", ")
    }
}
