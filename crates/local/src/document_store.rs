//! The operator's `DocumentStore` port over the user's two files and the state folder.
//!
//! Readers get the snapshot in memory and never wait. A write goes to disk first and then into the snapshot. Writes run
//! on a blocking thread, one at a time, and complete even if their caller stops waiting.
//!
//! Invariants: the content of the snapshot is also on disk. When the write of a rewrite ends, the gateway applies its
//! rules.

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

/// Paths of the two files that a user edits.
#[derive(Debug, Clone)]
pub struct InputFiles {
    /// Path of the Rollout file.
    pub rollout: PathBuf,
    /// Path of the adapters file: a plain `vLLMLoRAConfig`, or a ConfigMap that contains one.
    pub adapters: PathBuf,
}

#[derive(Clone)]
pub(crate) struct LocalDocumentStore(Arc<StoreInner>);

struct StoreInner {
    folder: StateFolder,
    inputs: InputFiles,
    snapshot: ArcSwap<StoreSnapshot>,
    write_lock: Mutex<()>,
    rules: Arc<ActiveRules>,
    /// Counts changes that the operator must reconcile.
    reconcile_tx: watch::Sender<u64>,
    /// Counts changes that an overview shows.
    overview_tx: watch::Sender<u64>,
}

/// Error while opening the document store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// One or both input files are invalid; one problem per line.
    #[error("{}", .0.join("\n"))]
    Input(Vec<String>),
    /// An initial document could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

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
    /// Reads the input files and the state folder, and writes documents that are new or changed. Blocks.
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
        let directives = read_directives(&folder)?;
        let events = folder.read(EVENTS_JSON)?.unwrap_or_default();
        let rules = ActiveRules::new(rollout.spec.pool_ref.clone(), &[RewriteGroup::Current, RewriteGroup::Legacy]);
        rules.reset(&rewrites);
        let snapshot = StoreSnapshot {
            rollout: Arc::new(rollout),
            rewrites: Arc::new(rewrites),
            adapters,
            directives,
            events: Arc::new(events),
            problems: FileProblems::default(),
        };
        Ok(Self(Arc::new(StoreInner {
            folder,
            inputs,
            snapshot: ArcSwap::from_pointee(snapshot),
            write_lock: Mutex::new(()),
            rules: Arc::new(rules),
            reconcile_tx: watch::Sender::new(0),
            overview_tx: watch::Sender::new(0),
        })))
    }

    pub(crate) fn snapshot(&self) -> Arc<StoreSnapshot> {
        self.0.snapshot.load_full()
    }

    /// Returns the rules that the gateway applies.
    pub(crate) fn rules(&self) -> &Arc<ActiveRules> {
        &self.0.rules
    }

    pub(crate) fn inputs(&self) -> &InputFiles {
        &self.0.inputs
    }

    /// Wakes the operator and everything that watches the overview.
    pub(crate) fn notify(&self) {
        self.0.reconcile_tx.send_modify(|count| *count += 1);
        self.0.overview_tx.send_modify(|count| *count += 1);
    }

    /// Returns a receiver that changes whenever the overview may have changed.
    pub(crate) fn subscribe_overview(&self) -> watch::Receiver<u64> {
        self.0.overview_tx.subscribe()
    }

    /// Returns a receiver that changes whenever the operator must reconcile.
    pub(crate) fn subscribe_reconcile(&self) -> watch::Receiver<u64> {
        self.0.reconcile_tx.subscribe()
    }

    pub(crate) async fn record_intent(&self, intent: Intent) -> Result<(), IntentError> {
        let store = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            store.0.update(|inner, snapshot| {
                let rollout = snapshot.with_intent(&intent)?;
                inner.folder.write(ROLLOUT_JSON, &rollout)?;
                snapshot.rollout = Arc::new(rollout);
                Ok::<_, IntentError>(())
            })
        });
        written.await??;
        self.notify();
        Ok(())
    }

    /// Applies the content of the Rollout file, or records its problem. Blocks.
    pub(crate) fn apply_rollout_file(&self, read: Result<ParsedRollout, String>) {
        self.0.update(|inner, snapshot| {
            let applied = read.and_then(|file| {
                let changed = updated_rollout(&snapshot.rollout, &file.rollout);
                let changed = changed.map_err(|errors| file.describe_errors(&inner.inputs.rollout, errors))?;
                if let Some(changed) = &changed {
                    inner.folder.write(ROLLOUT_JSON, changed).map_err(|error| error.to_string())?;
                }
                Ok(changed)
            });
            match applied {
                Ok(changed) => {
                    if let Some(changed) = changed {
                        let generation = changed.metadata.generation;
                        tracing::info!(file = %inner.inputs.rollout.display(), generation, "rollout file applied");
                        snapshot.rollout = Arc::new(changed);
                    }
                    update_problem(&inner.inputs.rollout, &mut snapshot.problems.rollout, None);
                }
                Err(problem) => update_problem(&inner.inputs.rollout, &mut snapshot.problems.rollout, Some(problem)),
            }
        });
        self.notify();
    }

    /// Applies the content of the adapters file, or records its problem. Blocks.
    pub(crate) fn apply_adapters_file(&self, read: Result<AdaptersContent, String>) {
        self.0.update(|inner, snapshot| match read {
            Ok(adapters) => {
                if adapters.text != snapshot.adapters.text {
                    tracing::info!(file = %inner.inputs.adapters.display(), "adapters file applied");
                    snapshot.adapters = adapters;
                }
                update_problem(&inner.inputs.adapters, &mut snapshot.problems.adapters, None);
            }
            Err(problem) => update_problem(&inner.inputs.adapters, &mut snapshot.problems.adapters, Some(problem)),
        });
        self.notify();
    }

    /// Stores an event. Blocks.
    fn record_event(&self, event: EventRecord) {
        self.0.update(|inner, snapshot| {
            let events = snapshot.with_event(event);
            if let Err(error) = inner.folder.write(EVENTS_JSON, &events) {
                tracing::warn!(%error, "event cannot be stored");
            }
            snapshot.events = Arc::new(events);
        });
        self.0.overview_tx.send_modify(|count| *count += 1);
    }
}

impl StoreInner {
    /// Runs `change` exclusively, on a copy of the snapshot that then replaces it.
    fn update<T>(&self, change: impl FnOnce(&Self, &mut StoreSnapshot) -> T) -> T {
        // The snapshot is replaced whole or not at all, so a lock that a panic has poisoned is safe to use.
        let _guard = self.write_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = StoreSnapshot::clone(&self.snapshot.load());
        let result = change(self, &mut snapshot);
        self.snapshot.store(Arc::new(snapshot));
        result
    }
}

/// Records the problem of a file, and logs it when it changes.
fn update_problem(file: &Path, current: &mut Option<String>, problem: Option<String>) {
    match &problem {
        Some(problem) if current.as_ref() != Some(problem) => {
            tracing::warn!("{problem}; the last valid content stays active");
        }
        None if current.is_some() => tracing::info!(file = %file.display(), "file is valid again"),
        _ => {}
    }
    *current = problem;
}

fn read_directives(folder: &StateFolder) -> Result<DirectivesContent, StateError> {
    let Some(text) = folder.read_text(DIRECTIVES_YAML)? else { return Ok(DirectivesContent::default()) };
    match OperatorDirectives::parse(&text) {
        Ok(directives) => Ok(DirectivesContent { text: Some(text.into()), parsed: Some(Arc::new(directives)) }),
        Err(problem) => Err(StateError::Corrupt {
            path: folder.document_path(DIRECTIVES_YAML),
            line: 1,
            problem: problem.to_string(),
        }),
    }
}

/// Maps a failed write to the outcome that the operator gets.
fn write_outcome(error: &WriteError) -> WriteOutcome {
    match error {
        WriteError::NotWritten { .. } => WriteOutcome::Unavailable(error.to_string()),
        WriteError::Unconfirmed { .. } => WriteOutcome::Unknown(error.to_string()),
    }
}
