//! The port `Store` over the user's two files and the state folder.
//!
//! Readers get the picture in memory and never wait. A write goes to disk first and then into the picture, on a thread
//! of its own, one at a time: whoever stops waiting for it does not leave it half-done.
//!
//! Invariant: what the picture says is on disk. The gateway's rules change in the write of a rewrite, not after it.

mod port;
#[cfg(test)]
mod tests;

use crate::{
    clock,
    documents::{Adapters, Documents, EventRecord, Key, Problems, changed_rollout, new_rollout},
    input::{self, RolloutFile},
    state::{StateError, StateFolder, WriteError},
};
use arc_swap::ArcSwap;
use rollora_api::{
    operator_directives::OperatorDirectives,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Intent, IntentPending, Rollout},
};
use rollora_operator::ports::WriteOutcome;
use rollora_router::active_rules::ActiveRules;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use uuid::Uuid;

const ROLLOUT: &str = "rollout.json";
const REWRITES: &str = "rewrites.json";
const KEY: &str = "operator-key.yaml";
const EVENTS: &str = "events.json";

/// The two files that a person edits.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The Rollout.
    pub rollout: PathBuf,
    /// The adapters file.
    pub adapters: PathBuf,
}

/// The documents of one machine.
#[derive(Clone)]
pub(crate) struct LocalStore(Arc<Inner>);

struct Inner {
    folder: StateFolder,
    inputs: Inputs,
    picture: ArcSwap<Documents>,
    writing: Mutex<()>,
    rules: Arc<ActiveRules>,
    /// Counts what the operator should look at.
    work: watch::Sender<u64>,
    /// Counts what a person may want to see.
    view: watch::Sender<u64>,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// One or both of the files; a problem a line.
    #[error("{}", .0.join("\n"))]
    Input(Vec<String>),
    /// A first document could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why an intent was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntentError {
    #[error(transparent)]
    Pending(#[from] IntentPending),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the state was not written: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl LocalStore {
    /// Reads everything there is. Blocks.
    pub(crate) fn open(folder: StateFolder, inputs: Inputs) -> Result<Self, OpenError> {
        let (file, adapters) = input::read_both(&inputs).map_err(OpenError::Input)?;
        let rollout = match folder.read::<Rollout>(ROLLOUT)? {
            None => {
                let rollout = new_rollout(&file.rollout, &Uuid::new_v4().to_string(), clock::now());
                folder.write(ROLLOUT, &rollout)?;
                rollout
            }
            Some(stored) => {
                let immutable = |errors| OpenError::Input(vec![file.explain(&inputs.rollout, errors)]);
                match changed_rollout(&stored, &file.rollout).map_err(immutable)? {
                    None => stored,
                    Some(changed) => {
                        folder.write(ROLLOUT, &changed)?;
                        changed
                    }
                }
            }
        };
        let rewrites: Vec<InferenceModelRewrite> = folder.read(REWRITES)?.unwrap_or_default();
        let key = read_key(&folder)?;
        let events = folder.read(EVENTS)?.unwrap_or_default();
        let rules = ActiveRules::new(rollout.spec.pool_ref.clone(), &[RewriteGroup::Current, RewriteGroup::Legacy]);
        rules.reset(&rewrites);
        let picture = Documents {
            rollout: Arc::new(rollout),
            rewrites: Arc::new(rewrites),
            adapters,
            key,
            events: Arc::new(events),
            problems: Problems::default(),
        };
        Ok(Self(Arc::new(Inner {
            folder,
            inputs,
            picture: ArcSwap::from_pointee(picture),
            writing: Mutex::new(()),
            rules: Arc::new(rules),
            work: watch::Sender::new(0),
            view: watch::Sender::new(0),
        })))
    }

    /// Everything, as it is now.
    pub(crate) fn picture(&self) -> Arc<Documents> {
        self.0.picture.load_full()
    }

    /// The rules in force at the gateway.
    pub(crate) fn rules(&self) -> &Arc<ActiveRules> {
        &self.0.rules
    }

    /// The files that a person edits.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.0.inputs
    }

    /// Says that the operator should look again; people see something new then, too.
    pub(crate) fn ring(&self) {
        self.0.work.send_modify(|count| *count += 1);
        self.0.view.send_modify(|count| *count += 1);
    }

    /// Changes with everything that a person may want to see.
    pub(crate) fn view(&self) -> watch::Receiver<u64> {
        self.0.view.subscribe()
    }

    /// Changes with everything that the operator should look at.
    pub(crate) fn work(&self) -> watch::Receiver<u64> {
        self.0.work.subscribe()
    }

    /// Takes an intent.
    pub(crate) async fn intend(&self, intent: Intent) -> Result<(), IntentError> {
        let store = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            store.0.write(|inner, picture| {
                let rollout = picture.with_intent(&intent)?;
                inner.folder.write(ROLLOUT, &rollout)?;
                picture.rollout = Arc::new(rollout);
                Ok::<_, IntentError>(())
            })
        });
        written.await??;
        self.ring();
        Ok(())
    }

    /// Takes in what the Rollout's file says now. Blocks.
    pub(crate) fn rollout_file(&self, read: Result<RolloutFile, String>) {
        self.0.write(|inner, picture| {
            let taken = read.and_then(|file| {
                let changed = changed_rollout(&picture.rollout, &file.rollout);
                let changed = changed.map_err(|errors| file.explain(&inner.inputs.rollout, errors))?;
                if let Some(changed) = &changed {
                    inner.folder.write(ROLLOUT, changed).map_err(|error| error.to_string())?;
                }
                Ok(changed)
            });
            match taken {
                Ok(changed) => {
                    if let Some(changed) = changed {
                        tracing::info!(file = %inner.inputs.rollout.display(), generation = changed.metadata.generation, "rollout file taken");
                        picture.rollout = Arc::new(changed);
                    }
                    say_problem(&inner.inputs.rollout, &mut picture.problems.rollout, None);
                }
                Err(problem) => say_problem(&inner.inputs.rollout, &mut picture.problems.rollout, Some(problem)),
            }
        });
        self.ring();
    }

    /// Takes in what the adapters file says now. Blocks.
    pub(crate) fn adapters_file(&self, read: Result<Adapters, String>) {
        self.0.write(|inner, picture| match read {
            Ok(adapters) => {
                if adapters.text != picture.adapters.text {
                    tracing::info!(file = %inner.inputs.adapters.display(), "adapters file taken");
                    picture.adapters = adapters;
                }
                say_problem(&inner.inputs.adapters, &mut picture.problems.adapters, None);
            }
            Err(problem) => say_problem(&inner.inputs.adapters, &mut picture.problems.adapters, Some(problem)),
        });
        self.ring();
    }

    /// Keeps an event. Blocks.
    fn keep_event(&self, event: EventRecord) {
        self.0.write(|inner, picture| {
            let events = picture.with_event(event);
            if let Err(error) = inner.folder.write(EVENTS, &events) {
                tracing::warn!(%error, "event not kept");
            }
            picture.events = Arc::new(events);
        });
        self.0.view.send_modify(|count| *count += 1);
    }
}

impl Inner {
    /// Runs `change` alone, on a copy of the picture that then takes the old one's place.
    fn write<T>(&self, change: impl FnOnce(&Self, &mut Documents) -> T) -> T {
        // A picture is put in place whole or not at all, so that a panic of another writer leaves no half of one.
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut picture = Documents::clone(&self.picture.load());
        let result = change(self, &mut picture);
        self.picture.store(Arc::new(picture));
        result
    }
}

/// Remembers what is wrong, and says it once in the log.
fn say_problem(file: &Path, known: &mut Option<String>, problem: Option<String>) {
    match &problem {
        Some(problem) if known.as_ref() != Some(problem) => {
            tracing::warn!("{problem}; what was in force stays in force");
        }
        None if known.is_some() => tracing::info!(file = %file.display(), "good again"),
        _ => {}
    }
    *known = problem;
}

fn read_key(folder: &StateFolder) -> Result<Key, StateError> {
    let Some(text) = folder.read_text(KEY)? else { return Ok(Key::default()) };
    match OperatorDirectives::parse(&text) {
        Ok(key) => Ok(Key { text: Some(text.into()), key: Some(Arc::new(key)) }),
        Err(problem) => Err(StateError::Corrupt { path: folder.file(KEY), line: 1, problem: problem.to_string() }),
    }
}

/// How a write ended, for the operator.
fn ended(error: &WriteError) -> WriteOutcome {
    match error {
        WriteError::NotWritten { .. } => WriteOutcome::Unavailable(error.to_string()),
        WriteError::Unconfirmed { .. } => WriteOutcome::Unknown(error.to_string()),
    }
}
