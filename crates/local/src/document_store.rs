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
    input::{self, ParsedRollout},
    snapshot::{
        AdaptersContent, DirectivesContent, EventRecord, FileProblems, StoreSnapshot, new_rollout, updated_rollout,
    },
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

const ROLLOUT_JSON: &str = "rollout.json";
const REWRITES_JSON: &str = "rewrites.json";
const DIRECTIVES_YAML: &str = "rollora.yaml";
const EVENTS_JSON: &str = "events.json";

/// The two files that a person edits.
#[derive(Debug, Clone)]
pub struct InputFiles {
    /// The Rollout.
    pub rollout: PathBuf,
    /// The adapters file.
    pub adapters: PathBuf,
}

/// The documents of one machine.
#[derive(Clone)]
pub(crate) struct LocalDocumentStore(Arc<StoreInner>);

struct StoreInner {
    folder: StateFolder,
    inputs: InputFiles,
    snapshot: ArcSwap<StoreSnapshot>,
    write_lock: Mutex<()>,
    rules: Arc<ActiveRules>,
    /// Counts what the operator should look at.
    reconcile_tx: watch::Sender<u64>,
    /// Counts what a person may want to see.
    overview_tx: watch::Sender<u64>,
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
    TaskFailed(#[from] tokio::task::JoinError),
}

impl LocalDocumentStore {
    /// Reads everything there is. Blocks.
    pub(crate) fn open(folder: StateFolder, inputs: InputFiles) -> Result<Self, OpenError> {
        let (file, adapters) = input::read_both(&inputs).map_err(OpenError::Input)?;
        let rollout = match folder.read::<Rollout>(ROLLOUT_JSON)? {
            None => {
                let rollout = new_rollout(&file.rollout, &Uuid::new_v4().to_string(), clock::now());
                folder.write(ROLLOUT_JSON, &rollout)?;
                rollout
            }
            Some(stored) => {
                let immutable = |errors| OpenError::Input(vec![file.describe_errors(&inputs.rollout, errors)]);
                match updated_rollout(&stored, &file.rollout).map_err(immutable)? {
                    None => stored,
                    Some(changed) => {
                        folder.write(ROLLOUT_JSON, &changed)?;
                        changed
                    }
                }
            }
        };
        let rewrites: Vec<InferenceModelRewrite> = folder.read(REWRITES_JSON)?.unwrap_or_default();
        let key = read_directives(&folder)?;
        let events = folder.read(EVENTS_JSON)?.unwrap_or_default();
        let rules = ActiveRules::new(rollout.spec.pool_ref.clone(), &[RewriteGroup::Current, RewriteGroup::Legacy]);
        rules.reset(&rewrites);
        let picture = StoreSnapshot {
            rollout: Arc::new(rollout),
            rewrites: Arc::new(rewrites),
            adapters,
            directives: key,
            events: Arc::new(events),
            problems: FileProblems::default(),
        };
        Ok(Self(Arc::new(StoreInner {
            folder,
            inputs,
            snapshot: ArcSwap::from_pointee(picture),
            write_lock: Mutex::new(()),
            rules: Arc::new(rules),
            reconcile_tx: watch::Sender::new(0),
            overview_tx: watch::Sender::new(0),
        })))
    }

    /// Everything, as it is now.
    pub(crate) fn snapshot(&self) -> Arc<StoreSnapshot> {
        self.0.snapshot.load_full()
    }

    /// The rules in force at the gateway.
    pub(crate) fn rules(&self) -> &Arc<ActiveRules> {
        &self.0.rules
    }

    /// The files that a person edits.
    pub(crate) fn inputs(&self) -> &InputFiles {
        &self.0.inputs
    }

    /// Says that the operator should look again; people see something new then, too.
    pub(crate) fn notify(&self) {
        self.0.reconcile_tx.send_modify(|count| *count += 1);
        self.0.overview_tx.send_modify(|count| *count += 1);
    }

    /// Changes with everything that a person may want to see.
    pub(crate) fn subscribe_overview(&self) -> watch::Receiver<u64> {
        self.0.overview_tx.subscribe()
    }

    /// Changes with everything that the operator should look at.
    pub(crate) fn subscribe_reconcile(&self) -> watch::Receiver<u64> {
        self.0.reconcile_tx.subscribe()
    }

    /// Takes an intent.
    pub(crate) async fn record_intent(&self, intent: Intent) -> Result<(), IntentError> {
        let store = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            store.0.update(|inner, picture| {
                let rollout = picture.with_intent(&intent)?;
                inner.folder.write(ROLLOUT_JSON, &rollout)?;
                picture.rollout = Arc::new(rollout);
                Ok::<_, IntentError>(())
            })
        });
        written.await??;
        self.notify();
        Ok(())
    }

    /// Takes in what the Rollout's file says now. Blocks.
    pub(crate) fn apply_rollout_file(&self, read: Result<ParsedRollout, String>) {
        self.0.update(|inner, picture| {
            let taken = read.and_then(|file| {
                let changed = updated_rollout(&picture.rollout, &file.rollout);
                let changed = changed.map_err(|errors| file.describe_errors(&inner.inputs.rollout, errors))?;
                if let Some(changed) = &changed {
                    inner.folder.write(ROLLOUT_JSON, changed).map_err(|error| error.to_string())?;
                }
                Ok(changed)
            });
            match taken {
                Ok(changed) => {
                    if let Some(changed) = changed {
                        tracing::info!(file = %inner.inputs.rollout.display(), generation = changed.metadata.generation, "rollout file taken");
                        picture.rollout = Arc::new(changed);
                    }
                    update_problem(&inner.inputs.rollout, &mut picture.problems.rollout, None);
                }
                Err(problem) => update_problem(&inner.inputs.rollout, &mut picture.problems.rollout, Some(problem)),
            }
        });
        self.notify();
    }

    /// Takes in what the adapters file says now. Blocks.
    pub(crate) fn apply_adapters_file(&self, read: Result<AdaptersContent, String>) {
        self.0.update(|inner, picture| match read {
            Ok(adapters) => {
                if adapters.text != picture.adapters.text {
                    tracing::info!(file = %inner.inputs.adapters.display(), "adapters file taken");
                    picture.adapters = adapters;
                }
                update_problem(&inner.inputs.adapters, &mut picture.problems.adapters, None);
            }
            Err(problem) => update_problem(&inner.inputs.adapters, &mut picture.problems.adapters, Some(problem)),
        });
        self.notify();
    }

    /// Keeps an event. Blocks.
    fn record_event(&self, event: EventRecord) {
        self.0.update(|inner, picture| {
            let events = picture.with_event(event);
            if let Err(error) = inner.folder.write(EVENTS_JSON, &events) {
                tracing::warn!(%error, "event not kept");
            }
            picture.events = Arc::new(events);
        });
        self.0.overview_tx.send_modify(|count| *count += 1);
    }
}

impl StoreInner {
    /// Runs `change` alone, on a copy of the picture that then takes the old one's place.
    fn update<T>(&self, change: impl FnOnce(&Self, &mut StoreSnapshot) -> T) -> T {
        // A picture is put in place whole or not at all, so that a panic of another writer leaves no half of one.
        let _alone = self.write_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut picture = StoreSnapshot::clone(&self.snapshot.load());
        let result = change(self, &mut picture);
        self.snapshot.store(Arc::new(picture));
        result
    }
}

/// Remembers what is wrong, and says it once in the log.
fn update_problem(file: &Path, known: &mut Option<String>, problem: Option<String>) {
    match &problem {
        Some(problem) if known.as_ref() != Some(problem) => {
            tracing::warn!("{problem}; what was in force stays in force");
        }
        None if known.is_some() => tracing::info!(file = %file.display(), "good again"),
        _ => {}
    }
    *known = problem;
}

fn read_directives(folder: &StateFolder) -> Result<DirectivesContent, StateError> {
    let Some(text) = folder.read_text(DIRECTIVES_YAML)? else { return Ok(DirectivesContent::default()) };
    match OperatorDirectives::parse(&text) {
        Ok(key) => Ok(DirectivesContent { text: Some(text.into()), parsed: Some(Arc::new(key)) }),
        Err(problem) => Err(StateError::Corrupt {
            path: folder.document_path(DIRECTIVES_YAML),
            line: 1,
            problem: problem.to_string(),
        }),
    }
}

/// How a write ended, for the operator.
fn write_outcome(error: &WriteError) -> WriteOutcome {
    match error {
        WriteError::NotWritten { .. } => WriteOutcome::Unavailable(error.to_string()),
        WriteError::Unconfirmed { .. } => WriteOutcome::Unknown(error.to_string()),
    }
}
