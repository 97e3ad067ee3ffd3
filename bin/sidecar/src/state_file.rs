//! What survives a restart of the sidecar, in a file. It is a help, not a truth: one that cannot be read is done
//! without, and one that cannot be written is said once.

use anyhow::Context;
use rollora_sidecar::state::PersistedState;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

/// The file's name in its folder.
const FILE_NAME: &str = "sidecar.json";

/// Where it is kept, if anywhere.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: Option<PathBuf>,
    state: watch::Sender<PersistedState>,
}

impl StateFile {
    /// Reads what an earlier run kept in `folder`.
    pub(crate) fn open(folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = folder else { return Ok(Self { path: None, state: watch::Sender::default() }) };
        let path = folder.join(FILE_NAME);
        let kept = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "what was kept cannot be read: it is done without");
                PersistedState::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => PersistedState::default(),
            Err(error) => return Err(error).with_context(|| format!("--state-dir: {} cannot be read", path.display())),
        };
        // Better now than when it matters.
        fs::create_dir_all(folder).and_then(|()| write_atomically(&path, &kept)).with_context(|| {
            format!("--state-dir {}: nothing can be written there: mount an emptyDir", folder.display())
        })?;
        Ok(Self { path: Some(path), state: watch::Sender::new(kept) })
    }

    /// What is kept; whoever changes it has it written.
    pub(crate) fn state(&self) -> watch::Sender<PersistedState> {
        self.state.clone()
    }

    /// Writes every change until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(path) = &self.path else { return stop.cancelled().await };
        let mut changes = self.state.subscribe();
        let mut failing = false;
        while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
            let (file, kept) = (path.clone(), changes.borrow_and_update().clone());
            let written = spawn_blocking(move || write_atomically(&file, &kept)).await.unwrap_or(Ok(()));
            if let Some(error) = written.as_ref().err().filter(|_| !failing) {
                tracing::warn!(file = %path.display(), %error, "what has to survive a restart cannot be written");
            }
            failing = written.is_err();
        }
    }

    /// Writes what there is to keep at the end.
    pub(crate) fn write_final(&self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = write_atomically(path, &self.state.borrow()) {
            tracing::warn!(file = %path.display(), %error, "what has to survive a restart cannot be written");
        }
    }
}

/// Whole or not at all. What an emptyDir holds ends with its node, so nothing is forced to the disk.
fn write_atomically(path: &Path, kept: &PersistedState) -> io::Result<()> {
    let fresh = path.with_extension("tmp");
    fs::write(&fresh, serde_json::to_vec(kept)?)?;
    fs::rename(&fresh, path)
}
