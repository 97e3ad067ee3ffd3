//! A value that is reloaded from a file, such as an API key or a CA certificate. The first read must succeed. If a
//! later one fails, the last good value stays active.

use rollora_sidecar::file_watch::FileWatch;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A value, and the watched file that it comes from, if any.
#[derive(Debug)]
pub(crate) struct Reloadable<T> {
    description: &'static str,
    file: Option<FileWatch<Result<T, String>>>,
    value: watch::Sender<Option<T>>,
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Reloadable<T> {
    /// Wraps a value that never changes.
    pub(crate) fn fixed(description: &'static str, value: Option<T>) -> Self {
        Self { description, file: None, value: watch::Sender::new(value) }
    }

    /// Reads `file` with `read`. An error says what to do and must not contain the content of the file.
    pub(crate) fn open(
        description: &'static str,
        file: PathBuf,
        read: impl Fn(&Path) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let file = FileWatch::open(file, read);
        let value = file.subscribe().borrow().clone()?;
        Ok(Self { description, file: Some(file), value: watch::Sender::new(Some(value)) })
    }

    /// Returns a receiver of the active value.
    pub(crate) fn value(&self) -> watch::Receiver<Option<T>> {
        self.value.subscribe()
    }

    /// Watches the file until `stop` is canceled.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(file) = &self.file else { return stop.cancelled().await };
        let mut contents = file.subscribe();
        let apply_changes = async {
            while contents.changed().await.is_ok() {
                match contents.borrow_and_update().clone() {
                    Ok(value) => {
                        tracing::info!(file = %file.path().display(), "{} was reloaded", self.description);
                        self.value.send_replace(Some(value));
                    }
                    Err(problem) => {
                        tracing::warn!("{} cannot be reloaded, keeping the last good one: {problem}", self.description);
                    }
                }
            }
        };
        tokio::select! {
            () = file.run(stop) => {}
            () = apply_changes => {}
        }
    }
}
