//! The adapters file, watched: the last good one stays in force, whatever stands there now.

use crate::watch_file::{WatchFile, read_text};
use rollora_api::{
    adapters::{AdaptersText, DesiredAdapters, Parsed, content_hash},
    names::OPERATOR_KEY,
    operator_key::OperatorKey,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Watches an adapters file, plain or in its ConfigMap, and the operator's key where that lies beside it.
#[derive(Debug)]
pub struct AdaptersWatch {
    files: WatchFile<Texts>,
    /// The key under which the file stands in a ConfigMap.
    key: String,
    desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    error: watch::Sender<Option<String>>,
}

/// Both texts, from one and the same projection of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Texts {
    user: Result<String, String>,
    operator: Option<Result<String, String>>,
}

impl AdaptersWatch {
    /// Reads the file for the first time. Where it is a ConfigMap, the user's text stands under `key`.
    pub fn open(path: impl Into<PathBuf>, key: impl Into<String>) -> Self {
        let watch = Self {
            files: WatchFile::open(path, Texts::read),
            key: key.into(),
            desired: watch::Sender::new(None),
            error: watch::Sender::new(None),
        };
        let texts = watch.files.subscribe().borrow().clone();
        watch.take(&texts);
        watch
    }

    /// The last good content; none before the first.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.desired.subscribe()
    }

    /// Why newer content is not in force: file, line and fix; none where what stands there is in force.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// Reads the file now. When this returns, what is published is not older than the call.
    pub async fn refresh(&self) {
        self.files.refresh().await;
        let texts = self.files.subscribe().borrow().clone();
        self.take(&texts);
    }

    /// Watches until it is stopped.
    pub async fn run(&self, stop: CancellationToken) {
        let mut texts = self.files.subscribe();
        let follow = async {
            while texts.changed().await.is_ok() {
                let texts = texts.borrow_and_update().clone();
                self.take(&texts);
            }
        };
        tokio::select! {
            () = self.files.run(stop) => {}
            () = follow => {}
        }
    }

    fn take(&self, texts: &Texts) {
        let error = match texts.desired(self.files.path(), &self.key) {
            Ok((desired, warnings)) => {
                let changed = self.desired.send_if_modified(|current| {
                    let changed = current.as_deref() != Some(&desired);
                    if changed {
                        *current = Some(Arc::new(desired));
                    }
                    changed
                });
                for warning in warnings.iter().filter(|_| changed) {
                    tracing::warn!("{}: {warning}", self.files.path().display());
                }
                None
            }
            Err(error) => Some(error),
        };
        self.error.send_if_modified(|current| {
            let changed = *current != error;
            if let Some(error) = error.as_deref().filter(|_| changed) {
                tracing::warn!("the last good adapters file stays in force: {error}");
            }
            *current = error;
            changed
        });
    }
}

impl Texts {
    /// Reads both. A mounted ConfigMap is a folder behind a link that is swapped as a whole: the link is followed once.
    fn read(path: &Path) -> Self {
        let user_path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let user = read_text(&user_path).map_err(|_| read_text(path).err().unwrap_or_default());
        let operator = match std::fs::read_to_string(user_path.with_file_name(OPERATOR_KEY)) {
            Ok(text) => Some(Ok(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(format!("{OPERATOR_KEY} beside {} cannot be read: {error}", path.display()))),
        };
        Self { user, operator }
    }

    fn desired(&self, path: &Path, key: &str) -> Result<(DesiredAdapters, Vec<String>), String> {
        let user = self.user.clone()?;
        let operator = self.operator.clone().transpose()?;
        let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = AdaptersText::new(user, key).map_err(|error| explain(&error))?;
        let Parsed { file, in_both } = text.parse().map_err(|error| explain(&error))?;
        let hash = content_hash(text.inner(), operator.as_deref());
        let key = operator.as_deref().map(OperatorKey::parse).transpose();
        let key = key.map_err(|error| format!("{OPERATOR_KEY} beside {}: {error}", path.display()))?;
        Ok((DesiredAdapters { file, key, hash }, in_both.iter().map(ToString::to_string).collect()))
    }
}

#[cfg(test)]
mod tests;
