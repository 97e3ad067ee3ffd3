//! A watch of the adapters file. The last good content stays active while newer content is invalid.

use crate::{
    file_watch::{FileWatch, read_text},
    last_good::{ConfigTexts, LastGoodConfig},
};
use rollora_api::{adapters::DesiredAdapters, names::DIRECTIVES_KEY};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Watches an adapters file, plain or in its ConfigMap, and the file `rollora.yaml` in the same folder, if there is
/// one.
#[derive(Debug)]
pub struct AdaptersWatch {
    file: FileWatch<ConfigTexts>,
    /// The ConfigMap key that holds the adapters file.
    configmap_key: String,
    last_good: LastGoodConfig,
}

impl AdaptersWatch {
    /// Reads the file for the first time. If the file is a whole ConfigMap, the adapters file is its text under `key`.
    pub fn open(path: impl Into<PathBuf>, key: impl Into<String>) -> Self {
        let watch = Self {
            file: FileWatch::open(path, read_texts),
            configmap_key: key.into(),
            last_good: LastGoodConfig::default(),
        };
        let texts = watch.file.subscribe().borrow().clone();
        watch.update(&texts);
        watch
    }

    /// Returns the last good content; `None` until a valid file was read.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.last_good.desired()
    }

    /// Returns why newer content is not active (file, line and fix); `None` if the present content is active.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.last_good.error()
    }

    /// Reads the file now. When this returns, the published content is not older than the call.
    pub async fn refresh(&self) {
        self.file.refresh().await;
        let texts = self.file.subscribe().borrow().clone();
        self.update(&texts);
    }

    /// Watches the file until `stop` is canceled.
    pub async fn run(&self, stop: CancellationToken) {
        let mut texts = self.file.subscribe();
        let follow = async {
            loop {
                tokio::select! {
                    changed = texts.changed() => if changed.is_err() { return },
                    () = self.last_good.wait_for_deadline() => {}
                }
                let texts = texts.borrow_and_update().clone();
                self.update(&texts);
            }
        };
        tokio::select! {
            () = self.file.run(stop) => {}
            () = follow => {}
        }
    }

    fn update(&self, texts: &ConfigTexts) {
        self.last_good.update(texts.parse(&self.file.path().display(), &self.configmap_key), Instant::now());
    }
}

/// Reads the adapters file and the directives. A mounted ConfigMap is a folder behind a link that is swapped as a
/// whole: the link is followed once, so that both texts are of one version.
pub fn read_texts(path: &Path) -> ConfigTexts {
    let user_path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let user = read_text(&user_path).map_err(|_| read_text(path).err().unwrap_or_default());
    let operator = match std::fs::read_to_string(user_path.with_file_name(DIRECTIVES_KEY)) {
        Ok(text) => Some(Ok(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(format!("{DIRECTIVES_KEY} next to {} cannot be read: {error}", path.display()))),
    };
    ConfigTexts { user, operator }
}

#[cfg(test)]
mod tests;
