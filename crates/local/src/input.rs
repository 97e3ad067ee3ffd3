//! The two files that a user edits: strict parsing, and detection of changes.
//!
//! A changed file is applied once two consecutive reads have found the same content. So a file that an editor is still
//! writing, or that is missing for a moment while it is replaced, is not mistaken for what the user meant.

#[cfg(test)]
mod tests;

use crate::{
    document_store::{InputFiles, LocalDocumentStore},
    snapshot::AdaptersContent,
};
use rollora_api::{
    adapters::AdaptersText,
    rollout::{Diagnostic, Rollout, RolloutError, line_of_field, validate::FieldError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Interval at which the files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Reads both files. The error lists every problem of both.
pub(crate) fn read_both(inputs: &InputFiles) -> Result<(ParsedRollout, AdaptersContent), Vec<String>> {
    let rollout = read_text(&inputs.rollout).and_then(|text| parse_rollout(&inputs.rollout, text));
    // If the Rollout is invalid, the adapters file is checked all the same, under the default key.
    let key = rollout.as_ref().map_or("configmap.yaml", |file| file.rollout.spec.adapters_ref.key.as_str());
    let adapters = read_text(&inputs.adapters).and_then(|text| parse_adapters(&inputs.adapters, &text, key));
    match (rollout, adapters) {
        (Ok(rollout), Ok(adapters)) => Ok((rollout, adapters)),
        (rollout, adapters) => Err([rollout.err(), adapters.err()].into_iter().flatten().collect()),
    }
}

/// A parsed Rollout file, with its text for the line numbers of errors.
#[derive(Debug)]
pub(crate) struct ParsedRollout {
    pub(crate) rollout: Rollout,
    text: String,
}

impl ParsedRollout {
    /// Formats errors in fields of the Rollout, with file and line.
    pub(crate) fn describe_errors(&self, path: &Path, errors: Vec<FieldError>) -> String {
        let problem = |error: FieldError| Diagnostic {
            line: line_of_field(&self.text, &error.path),
            field: error.path,
            message: error.message,
        };
        let error = RolloutError { diagnostics: errors.into_iter().map(problem).collect() };
        format!("{}: {error}", path.display())
    }
}

pub(crate) fn parse_rollout(path: &Path, text: String) -> Result<ParsedRollout, String> {
    match Rollout::from_yaml(&text) {
        Ok(rollout) => Ok(ParsedRollout { rollout, text }),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Parses an adapters file, either plain or under `key` of a ConfigMap.
pub(crate) fn parse_adapters(path: &Path, text: &str, key: &str) -> Result<AdaptersContent, String> {
    let read = AdaptersText::new(text, key).and_then(|text| text.parse().map(|parsed| (text, parsed)));
    let (text, parsed) = read.map_err(|error| format!("{}: {error}", path.display()))?;
    for both in &parsed.in_both_lists {
        tracing::warn!("{}: {both}", path.display());
    }
    Ok(AdaptersContent { text: Arc::new(text), file: Arc::new(parsed.file) })
}

fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| read_error(path, &error))
}

fn read_error(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path}: there is no such file: create it"),
        io::ErrorKind::InvalidData => format!("{path}: not UTF-8: save it as UTF-8 text"),
        _ => format!("{path} cannot be read: {error}"),
    }
}

/// Watches both files until `stop` is canceled, and applies their changes to the store.
pub(crate) async fn watch_files(store: LocalDocumentStore, stop: CancellationToken) {
    let (mut rollout, mut adapters) = (WatchedFile::default(), WatchedFile::default());
    while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
        let (store, mut files) = (store.clone(), (rollout, adapters));
        let polled = tokio::task::spawn_blocking(move || {
            poll_files(&store, &mut files.0, &mut files.1);
            files
        });
        match polled.await {
            Ok(files) => (rollout, adapters) = files,
            Err(error) => {
                tracing::error!(%error, "the watch of the input files failed");
                return;
            }
        }
    }
}

/// Reads the adapters file now, and applies it if it is valid. As in [`watch_files`], new content must be found twice.
pub(crate) async fn reload_adapters(store: &LocalDocumentStore) {
    let path = store.inputs().adapters.clone();
    let mut content = read_file(path.clone()).await;
    while content.as_deref() != Ok(store.snapshot().adapters.text.full_text()) {
        tokio::time::sleep(POLL_INTERVAL).await;
        let reread = read_file(path.clone()).await;
        if reread == content {
            break;
        }
        content = reread;
    }
    let key = store.snapshot().rollout.spec.adapters_ref.key.clone();
    if let Ok(adapters) = content.and_then(|text| parse_adapters(&path, &text, &key)) {
        store.apply_adapters_file(Ok(adapters));
    }
}

async fn read_file(path: PathBuf) -> FileContent {
    let read = tokio::task::spawn_blocking(move || read_text(&path));
    read.await.unwrap_or_else(|error| Err(format!("the file was not read: {error}")))
}

fn poll_files(store: &LocalDocumentStore, rollout: &mut WatchedFile, adapters: &mut WatchedFile) {
    let inputs = store.inputs();
    if let Some(content) = rollout.poll(&inputs.rollout) {
        store.apply_rollout_file(content.and_then(|text| parse_rollout(&inputs.rollout, text)));
        // The Rollout names the ConfigMap key of the adapters, so their file must be parsed again.
        *adapters = WatchedFile::default();
    }
    if let Some(content) = adapters.poll(&inputs.adapters) {
        let snapshot = store.snapshot();
        let key = &snapshot.rollout.spec.adapters_ref.key;
        store.apply_adapters_file(content.and_then(|text| parse_adapters(&inputs.adapters, &text, key)));
    }
}

type FileContent = Result<String, String>;

/// State of the change detection for one file.
#[derive(Default)]
struct WatchedFile {
    accepted: Option<FileContent>,
    stamp: Option<FileStamp>,
    pending: Option<FileContent>,
}

/// Modification time, length and inode, which reveal most changes of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp(Option<(std::time::SystemTime, u64, u64)>);

impl WatchedFile {
    /// Returns the content if it differs from the last accepted one and was the same at the previous poll.
    fn poll(&mut self, path: &Path) -> Option<FileContent> {
        let stamp = FileStamp::of(path);
        if self.pending.is_none() && self.stamp.as_ref() == Some(&stamp) {
            return None;
        }
        self.stamp = Some(stamp);
        let content = read_text(path);
        if self.accepted.as_ref() == Some(&content) {
            self.pending = None;
            return None;
        }
        if self.pending.as_ref() != Some(&content) {
            self.pending = Some(content);
            return None;
        }
        self.pending = None;
        self.accepted = Some(content.clone());
        Some(content)
    }
}

impl FileStamp {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(fs::metadata(path).ok().and_then(|file| Some((file.modified().ok()?, file.len(), file.ino()))))
    }
}
