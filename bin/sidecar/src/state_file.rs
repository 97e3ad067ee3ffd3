//! The file of the state that survives a restart of the sidecar. It is optional: without a readable file the sidecar
//! starts from scratch, and a failure to write it is only logged, once.

use anyhow::Context;
use rollora_sidecar::state::PersistedState;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

const FILE_NAME: &str = "sidecar.json";

/// The state file, or a value in memory if there is no state folder.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: Option<PathBuf>,
    state: watch::Sender<PersistedState>,
}

impl StateFile {
    /// Reads the state that an earlier run wrote to `folder`.
    pub(crate) fn open(folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = folder else { return Ok(Self { path: None, state: watch::Sender::default() }) };
        let path = folder.join(FILE_NAME);
        let state = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "the state file cannot be parsed, starting without it");
                PersistedState::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => PersistedState::default(),
            Err(error) => return Err(error).with_context(|| format!("--state-dir: cannot read {}", path.display())),
        };
        // Fail at the start if the folder is not writable.
        fs::create_dir_all(folder)
            .and_then(|()| write_atomically(&path, &state))
            .with_context(|| format!("--state-dir: cannot write to {}: mount an emptyDir", folder.display()))?;
        Ok(Self { path: Some(path), state: watch::Sender::new(state) })
    }

    /// Returns the sender of the state; every change is written to the file.
    pub(crate) fn state(&self) -> watch::Sender<PersistedState> {
        self.state.clone()
    }

    /// Writes every change until `stop` is canceled.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(path) = &self.path else { return stop.cancelled().await };
        let mut changes = self.state.subscribe();
        let mut failing = false;
        while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
            let (file, state) = (path.clone(), changes.borrow_and_update().clone());
            let result = spawn_blocking(move || write_atomically(&file, &state)).await.unwrap_or(Ok(()));
            if let Some(error) = result.as_ref().err().filter(|_| !failing) {
                tracing::warn!(file = %path.display(), %error, "cannot write the state file");
            }
            failing = result.is_err();
        }
    }

    /// Writes the last state before the program ends.
    pub(crate) fn write_final(&self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = write_atomically(path, &self.state.borrow()) {
            tracing::warn!(file = %path.display(), %error, "cannot write the state file");
        }
    }
}

/// Replaces the file atomically. Without a sync, because an emptyDir does not survive its node anyway.
fn write_atomically(path: &Path, state: &PersistedState) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, serde_json::to_vec(state)?)?;
    fs::rename(&temporary, path)
}
