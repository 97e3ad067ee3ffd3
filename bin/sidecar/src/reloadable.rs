//! What a file holds that may change: a key, a CA's certificate. The first reading has to be good; whatever goes wrong
//! with the file later changes nothing, the last good content stays.

use rollora_sidecar::file_watch::FileWatch;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A value, and the file that it comes from, if any.
#[derive(Debug)]
pub(crate) struct Reloadable<T> {
    description: &'static str,
    file: Option<FileWatch<Result<T, String>>>,
    value: watch::Sender<Option<T>>,
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Reloadable<T> {
    /// A value that stays.
    pub(crate) fn fixed(description: &'static str, value: Option<T>) -> Self {
        Self { description, file: None, value: watch::Sender::new(value) }
    }

    /// What `read` makes of `file`; an error says what to do, without what is in the file.
    pub(crate) fn open(
        what: &'static str,
        file: PathBuf,
        read: impl Fn(&Path) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let file = FileWatch::open(file, read);
        let value = file.subscribe().borrow().clone()?;
        Ok(Self { description: what, file: Some(file), value: watch::Sender::new(Some(value)) })
    }

    /// The value in force.
    pub(crate) fn value(&self) -> watch::Receiver<Option<T>> {
        self.value.subscribe()
    }

    /// Watches until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(file) = &self.file else { return stop.cancelled().await };
        let mut readings = file.subscribe();
        let follow = async {
            while readings.changed().await.is_ok() {
                match readings.borrow_and_update().clone() {
                    Ok(value) => {
                        tracing::info!(file = %file.path().display(), "{} was read again", self.description);
                        self.value.send_replace(Some(value));
                    }
                    Err(problem) => {
                        tracing::warn!("{} cannot be taken, the last good one stays: {problem}", self.description)
                    }
                }
            }
        };
        tokio::select! {
            () = file.run(stop) => {}
            () = follow => {}
        }
    }
}
