//! What an answer causes: what is told of the adapter and of the server, and what is asked next and when.

use crate::answer::{Asked, Meaning, Reply, ask};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile, ContentHash, DesiredAdapters},
    names::AdapterId,
};
use rollora_sidecar::{
    Policy,
    decide::{Action, decide},
    memory::{CallKind, Ended, Look, LookError, LookStep, Memory, Seen},
    status::status,
};
use rollora_vllm::{ModelCard, ServerMetrics, VllmError};
use std::{collections::BTreeMap, fmt, time::Duration};

/// What came of an answer, in the words of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The adapter's state and the class of its error, if any, with `person` where one is needed.
    pub(crate) adapter: String,
    /// `up` and the class of a problem, or why the server is not ready.
    pub(crate) server: String,
    /// What is asked next: `look` at once, a wait, a call; or nothing.
    pub(crate) next: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {:?}", self.adapter, self.server, self.next)
    }
}

impl Outcome {
    /// Asks a server whose answer to the question is this one.
    pub(crate) async fn of(asked: Asked, reply: &Reply) -> Self {
        let answer = ask(asked, reply).await;
        let mut stage = Stage::before(asked, &reply.about());
        stage.takes(asked, answer);
        stage.outcome()
    }
}

/// A sidecar's memory, and a server that shows what is in its table.
struct Stage {
    memory: Memory,
    now: Timestamp,
    id: AdapterId,
    table: BTreeMap<String, String>,
}

const SOURCE: &str = "/adapters/a1";

impl Stage {
    /// The moment in which this is asked, beside a server that was ready.
    fn before(asked: Asked, id: &AdapterId) -> Self {
        let mut stage = Self {
            memory: Memory::new("http://server", Policy::default()),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            id: id.clone(),
            table: BTreeMap::new(),
        };
        if asked != Asked::Load {
            stage.table.insert(id.to_string(), SOURCE.to_owned());
        }
        stage.look();
        stage.desire(true);
        if !matches!(asked, Asked::Load | Asked::Probe) {
            stage.begin();
            stage.ended(Ok(()));
            stage.memory.latch_ready();
        }
        if asked == Asked::Unload {
            stage.desire(false);
        }
        if matches!(asked, Asked::Load | Asked::Probe | Asked::Unload) {
            let kind = stage.begin();
            let expected = match asked {
                Asked::Load => CallKind::Load,
                Asked::Probe => CallKind::Probe,
                _ => CallKind::Unload,
            };
            assert_eq!(kind, expected);
        } else {
            stage.now += Duration::from_mins(1);
        }
        stage
    }

    fn desire(&mut self, wanted: bool) {
        let entry = AdapterEntry { id: self.id.clone(), source: SOURCE.to_owned(), base_model: None, required: false };
        let mut file = AdaptersFile::default();
        if wanted { &mut file.ensure_exist } else { &mut file.ensure_not_exist }.push(entry);
        self.memory.desire(&DesiredAdapters { file, directives: None, hash: ContentHash::default() }, "pod", self.now);
    }

    /// Begins the one call that is decided.
    fn begin(&mut self) -> CallKind {
        let actions = decide(&self.memory, self.now);
        let [action] = actions.as_slice() else { panic!("{actions:?}") };
        self.memory.began(action, self.now);
        action.kind()
    }

    fn ended(&mut self, answer: Result<(), VllmError>) {
        self.memory.ended(&self.id.clone(), self.memory.epoch(), Ended::Answered(answer), 0.0, self.now);
    }

    /// The answer arrives.
    fn takes(&mut self, asked: Asked, answer: Result<Meaning, VllmError>) {
        let step = match asked {
            Asked::Health => LookStep::Health,
            Asked::Models => LookStep::Models,
            Asked::Metrics => LookStep::Metrics,
            Asked::Load | Asked::Probe | Asked::Unload => {
                let answer = answer.map(drop);
                self.is_as_it_says(asked, &answer);
                return self.ended(answer);
            }
        };
        let ticket = self.memory.look_began(Look { metrics: true, models: true }, self.now);
        let mut seen = self.shows();
        let result = match answer {
            Ok(Meaning::Models(models)) => {
                // What the recorded server had, with the adapter as ours has it.
                let ours = seen.models.unwrap_or_default().into_iter().filter(|model| !model.is_base_model());
                seen.models = Some(models.into_iter().filter(ModelCard::is_base_model).chain(ours).collect());
                Ok(seen)
            }
            Ok(Meaning::Metrics(metrics)) => {
                seen.metrics = Some(metrics);
                Ok(seen)
            }
            Ok(Meaning::Done) => Ok(seen),
            // As a look takes it: a server may keep its metrics to itself.
            Err(VllmError::Unauthorized | VllmError::Refused { .. } | VllmError::UnexpectedResponse { .. })
                if asked == Asked::Metrics =>
            {
                seen.metrics = Some(ServerMetrics::default());
                Ok(seen)
            }
            Err(error) => Err(LookError { step, error }),
        };
        self.memory.looked(ticket, result, self.now);
    }

    /// The server's table is as its answer says.
    fn is_as_it_says(&mut self, asked: Asked, answer: &Result<(), VllmError>) {
        match (asked, answer) {
            (Asked::Load, Ok(()) | Err(VllmError::AlreadyLoaded { .. })) => {
                self.table.insert(self.id.to_string(), SOURCE.to_owned());
            }
            (Asked::Unload, Ok(())) | (_, Err(VllmError::UnknownAdapter { .. })) => {
                self.table.remove(self.id.as_str());
            }
            _ => {}
        }
    }

    fn shows(&self) -> Seen {
        let card = |id: &str, root: &str, parent: Option<&str>| ModelCard {
            id: id.to_owned(),
            root: Some(root.to_owned()),
            parent: parent.map(str::to_owned),
        };
        let adapters = self.table.iter().map(|(id, root)| card(id, root, Some("base")));
        Seen {
            metrics: Some(ServerMetrics {
                process_start_time: Some("1".to_owned()),
                has_statistics: true,
                ..ServerMetrics::default()
            }),
            models: Some(std::iter::once(card("base", "/base", None)).chain(adapters).collect()),
        }
    }

    /// A look at a server that is well.
    fn look(&mut self) {
        let ticket = self.memory.look_began(Look { metrics: true, models: true }, self.now);
        let seen = self.shows();
        self.memory.looked(ticket, Ok(seen), self.now);
    }

    fn outcome(mut self) -> Outcome {
        let status = status(&self.memory, self.now);
        let adapter = status.adapter(&self.id).map_or_else(String::new, |adapter| {
            let error = adapter.last_error.as_ref().map(|error| error.reason.clone());
            let person = self.memory.adapters[&self.id].needs_person.then(|| "person".to_owned());
            let words: Vec<_> = std::iter::once(format!("{:?}", adapter.state)).chain(error).chain(person).collect();
            words.join(" ")
        });
        let server = match (&status.server, &status.problem) {
            (Some(_), None) if self.memory.is_up() => "up".to_owned(),
            (Some(_), Some(problem)) if self.memory.is_up() => format!("up {}", problem.reason),
            _ => status.readiness.reason.clone(),
        };
        Outcome { adapter, server, next: self.next() }
    }

    /// What happens from here on, beside a server that is well again.
    fn next(&mut self) -> String {
        let mut next = Vec::new();
        let began = self.now;
        while self.now < began + Duration::from_mins(10) {
            let actions = decide(&self.memory, self.now);
            if let Some(action) = actions.first() {
                let waited = self.now.duration_since(began).as_secs_f64();
                if waited > 0.0 {
                    next.push(format!("{waited} s"));
                }
                let word = match action {
                    Action::Load { .. } => "load",
                    Action::Probe { .. } => "probe",
                    Action::Unload { .. } => "unload",
                };
                next.push(word.to_owned());
                return next.join(", ");
            }
            if let Some(look) = self.memory.look_due(self.now) {
                let at_once = self.now == began && look.models;
                if at_once {
                    next.push("look".to_owned());
                }
                self.look();
            }
            if decide(&self.memory, self.now).is_empty() {
                self.now += Duration::from_millis(250);
            }
        }
        next.push("nothing".to_owned());
        next.join(", ")
    }
}
