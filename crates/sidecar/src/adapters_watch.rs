//! The adapters file, watched: the last good one stays in force, whatever stands there now.

use crate::{
    in_force::{InForce, Texts},
    watch_file::{WatchFile, read_text},
};
use rollora_api::{adapters::DesiredAdapters, names::DIRECTIVES_KEY};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Watches an adapters file, plain or in its ConfigMap, and the operator's key where that lies beside it.
#[derive(Debug)]
pub struct AdaptersWatch {
    files: WatchFile<Texts>,
    /// The key under which the file stands in a ConfigMap.
    key: String,
    in_force: InForce,
}

impl AdaptersWatch {
    /// Reads the file for the first time. Where it is a ConfigMap, the user's text stands under `key`.
    pub fn open(path: impl Into<PathBuf>, key: impl Into<String>) -> Self {
        let watch = Self { files: WatchFile::open(path, read_texts), key: key.into(), in_force: InForce::default() };
        let texts = watch.files.subscribe().borrow().clone();
        watch.take(&texts);
        watch
    }

    /// The last good content; none before the first.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.in_force.desired()
    }

    /// Why newer content is not in force: file, line and fix; none where what stands there is in force.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.in_force.error()
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
            loop {
                tokio::select! {
                    changed = texts.changed() => if changed.is_err() { return },
                    () = self.in_force.waited() => {}
                }
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
        self.in_force.take(texts.read(&self.files.path().display(), &self.key), Instant::now());
    }
}

/// Reads both. A mounted ConfigMap is a folder behind a link that is swapped as a whole: the link is followed once.
pub fn read_texts(path: &Path) -> Texts {
    let user_path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let user = read_text(&user_path).map_err(|_| read_text(path).err().unwrap_or_default());
    let operator = match std::fs::read_to_string(user_path.with_file_name(DIRECTIVES_KEY)) {
        Ok(text) => Some(Ok(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(format!("{DIRECTIVES_KEY} beside {} cannot be read: {error}", path.display()))),
    };
    Texts { user, operator }
}

#[cfg(test)]
mod tests;
