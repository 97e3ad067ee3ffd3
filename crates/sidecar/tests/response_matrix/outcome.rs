//! What an answer causes: what is told of the adapter and of the server, and what is asked next and when.

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

/// What came of an answer, in the words of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyOutcome {
    /// The adapter's state and the class of its error, if any, with `person` where one is needed.
    pub(crate) adapter: String,
    /// `up` and the class of a problem, or why the server is not ready.
    pub(crate) server: String,
    /// What is asked next: `look` at once, a wait, a call; or nothing.
    pub(crate) next: String,
}

impl fmt::Display for ReplyOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {:?}", self.adapter, self.server, self.next)
    }
}

impl ReplyOutcome {
    /// Asks a server whose answer to the question is this one.
    pub(crate) async fn from_reply(asked: RequestKind, reply: &ServerReply) -> Self {
        let answer = send_request(asked, reply).await;
        let mut stage = ReplyFixture::prepare(asked, &reply.adapter_id());
        stage.deliver(asked, answer);
        stage.outcome()
    }
}

/// A sidecar's memory, and a server that shows what is in its table.
struct ReplyFixture {
    state: SidecarState,
    now: Timestamp,
    id: AdapterId,
    table: BTreeMap<String, String>,
}

const SOURCE: &str = "/adapters/a1";

impl ReplyFixture {
    /// The moment in which this is asked, beside a server that was ready.
    fn prepare(asked: RequestKind, id: &AdapterId) -> Self {
        let mut stage = Self {
            state: SidecarState::new("http://server", SidecarPolicy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            id: id.clone(),
            table: BTreeMap::new(),
        };
        if asked != RequestKind::Load {
            stage.table.insert(id.to_string(), SOURCE.to_owned());
        }
        stage.poll();
        stage.set_desired(true);
        if !matches!(asked, RequestKind::Load | RequestKind::Probe) {
            stage.begin_call();
            stage.finish_call(Ok(()));
            stage.state.latch_ready();
        }
        if asked == RequestKind::Unload {
            stage.set_desired(false);
        }
        if matches!(asked, RequestKind::Load | RequestKind::Probe | RequestKind::Unload) {
            let kind = stage.begin_call();
            let expected = match asked {
                RequestKind::Load => CallKind::Load,
                RequestKind::Probe => CallKind::Probe,
                _ => CallKind::Unload,
            };
            assert_eq!(kind, expected);
        } else {
            stage.now += Duration::from_mins(1);
        }
        stage
    }

    fn set_desired(&mut self, wanted: bool) {
        let entry = AdapterEntry { id: self.id.clone(), source: SOURCE.to_owned(), base_model: None, required: false };
        let mut file = AdaptersFile::default();
        if wanted { &mut file.ensure_exist } else { &mut file.ensure_not_exist }.push(entry);
        self.state.set_desired(
            &DesiredAdapters { file, directives: None, hash: ContentHash::default() },
            "pod",
            self.now,
        );
    }

    /// Begins the one call that is decided.
    fn begin_call(&mut self) -> CallKind {
        let actions = decide(&self.state, self.now);
        let [action] = actions.as_slice() else { panic!("{actions:?}") };
        self.state.begin_call(action, self.now);
        action.kind()
    }

    fn finish_call(&mut self, answer: Result<(), VllmError>) {
        self.state.finish_call(&self.id.clone(), self.state.epoch(), CallOutcome::Executed(answer), 0.0, self.now);
    }

    /// The answer arrives.
    fn deliver(&mut self, asked: RequestKind, answer: Result<ParsedReply, VllmError>) {
        let step = match asked {
            RequestKind::Health => PollStep::Health,
            RequestKind::Models => PollStep::Models,
            RequestKind::Metrics => PollStep::Metrics,
            RequestKind::Load | RequestKind::Probe | RequestKind::Unload => {
                let answer = answer.map(drop);
                self.apply_to_table(asked, &answer);
                return self.finish_call(answer);
            }
        };
        let ticket = self.state.begin_poll(PollRequest { metrics: true, models: true }, self.now);
        let mut seen = self.observe();
        let result = match answer {
            Ok(ParsedReply::Models(models)) => {
                // What the recorded server had, with the adapter as ours has it.
                let ours = seen.models.unwrap_or_default().into_iter().filter(|model| !model.is_base_model());
                seen.models = Some(models.into_iter().filter(ModelCard::is_base_model).chain(ours).collect());
                Ok(seen)
            }
            Ok(ParsedReply::Metrics(metrics)) => {
                seen.metrics = Some(metrics);
                Ok(seen)
            }
            Ok(ParsedReply::Done) => Ok(seen),
            // As a look takes it: a server may keep its metrics to itself.
            Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. })
                if asked == RequestKind::Metrics =>
            {
                seen.metrics = Some(ServerMetrics::default());
                Ok(seen)
            }
            Err(error) => Err(PollError { step, error }),
        };
        self.state.finish_poll(ticket, result, self.now);
    }

    /// The server's table is as its answer says.
    fn apply_to_table(&mut self, asked: RequestKind, answer: &Result<(), VllmError>) {
        match (asked, answer) {
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

    /// A look at a server that is well.
    fn poll(&mut self) {
        let ticket = self.state.begin_poll(PollRequest { metrics: true, models: true }, self.now);
        let seen = self.observe();
        self.state.finish_poll(ticket, Ok(seen), self.now);
    }

    fn outcome(mut self) -> ReplyOutcome {
        let status = status(&self.state, self.now);
        let adapter = status.adapter(&self.id).map_or_else(String::new, |adapter| {
            let error = adapter.last_error.as_ref().map(|error| error.reason.clone());
            let person = self.state.adapters[&self.id].needs_person.then(|| "person".to_owned());
            let words: Vec<_> = std::iter::once(format!("{:?}", adapter.state)).chain(error).chain(person).collect();
            words.join(" ")
        });
        let server = match (&status.server, &status.problem) {
            (Some(_), None) if self.state.is_up() => "up".to_owned(),
            (Some(_), Some(problem)) if self.state.is_up() => format!("up {}", problem.reason),
            _ => status.readiness.reason.clone(),
        };
        ReplyOutcome { adapter, server, next: self.next_calls() }
    }

    /// What happens from here on, beside a server that is well again.
    fn next_calls(&mut self) -> String {
        let mut next = Vec::new();
        let began = self.now;
        while self.now < began + Duration::from_mins(10) {
            let actions = decide(&self.state, self.now);
            if let Some(action) = actions.first() {
                let waited = self.now.duration_since(began).as_secs_f64();
                if waited > 0.0 {
                    next.push(format!("{waited} s"));
                }
                let word = match action {
                    AdapterCall::Load { .. } => "load",
                    AdapterCall::Probe { .. } => "probe",
                    AdapterCall::Unload { .. } => "unload",
                };
                next.push(word.to_owned());
                return next.join(", ");
            }
            if let Some(look) = self.state.due_poll(self.now) {
                let at_once = self.now == began && look.models;
                if at_once {
                    next.push("look".to_owned());
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
