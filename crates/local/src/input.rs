//! The two files that a person edits: reading them strictly, and noticing that they changed.
//!
//! A file is taken once two looks in a row found the same content, so that one which an editor is still writing, or
//! which is away for a moment while it is replaced, is not mistaken for what the person meant.

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

/// How often the files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Reads both files; every problem of either, in words.
pub(crate) fn read_both(inputs: &InputFiles) -> Result<(ParsedRollout, AdaptersContent), Vec<String>> {
    let rollout = read_text(&inputs.rollout).and_then(|text| parse_rollout(&inputs.rollout, text));
    // Where the Rollout cannot be read, the adapters file is checked all the same, under its usual key.
    let key = rollout.as_ref().map_or("configmap.yaml", |file| file.rollout.spec.adapters_ref.key.as_str());
    let adapters = read_text(&inputs.adapters).and_then(|text| parse_adapters(&inputs.adapters, &text, key));
    match (rollout, adapters) {
        (Ok(rollout), Ok(adapters)) => Ok((rollout, adapters)),
        (rollout, adapters) => Err([rollout.err(), adapters.err()].into_iter().flatten().collect()),
    }
}

/// A Rollout as it stands in its file.
#[derive(Debug)]
pub(crate) struct ParsedRollout {
    pub(crate) rollout: Rollout,
    text: String,
}

impl ParsedRollout {
    /// Says what is wrong with fields of the Rollout, with file and line.
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

/// Reads a Rollout.
pub(crate) fn parse_rollout(path: &Path, text: String) -> Result<ParsedRollout, String> {
    match Rollout::from_yaml(&text) {
        Ok(rollout) => Ok(ParsedRollout { rollout, text }),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Reads an adapters file, plain or in its ConfigMap under `key`.
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
        io::ErrorKind::NotFound => format!("{path}: there is no such file: put it there"),
        io::ErrorKind::InvalidData => format!("{path}: not UTF-8: save it as UTF-8 text"),
        _ => format!("{path} cannot be read: {error}"),
    }
}

/// Watches both files for as long as the process runs, and tells the store.
pub(crate) async fn watch_files(store: LocalDocumentStore, stop: CancellationToken) {
    let (mut rollout, mut adapters) = (WatchedFile::default(), WatchedFile::default());
    while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
        let (again, mut before) = (store.clone(), (rollout, adapters));
        let looked = tokio::task::spawn_blocking(move || {
            poll_files(&again, &mut before.0, &mut before.1);
            before
        });
        match looked.await {
            Ok(after) => (rollout, adapters) = after,
            Err(error) => {
                tracing::error!(%error, "the files are not watched any more");
                return;
            }
        }
    }
}

/// Has the adapters file read now, and taken where it is good. As in [`watch`], news count when they were seen twice.
pub(crate) async fn reload_adapters(store: &LocalDocumentStore) {
    let path = store.inputs().adapters.clone();
    let mut seen = read_file(path.clone()).await;
    while seen.as_deref() != Ok(store.snapshot().adapters.text.full_text()) {
        tokio::time::sleep(POLL_INTERVAL).await;
        let again = read_file(path.clone()).await;
        if again == seen {
            break;
        }
        seen = again;
    }
    let key = store.snapshot().rollout.spec.adapters_ref.key.clone();
    if let Ok(adapters) = seen.and_then(|text| parse_adapters(&path, &text, &key)) {
        store.apply_adapters_file(Ok(adapters));
    }
}

async fn read_file(path: PathBuf) -> FileContent {
    let read = tokio::task::spawn_blocking(move || read_text(&path));
    read.await.unwrap_or_else(|error| Err(format!("the file was not read: {error}")))
}

fn poll_files(store: &LocalDocumentStore, rollout: &mut WatchedFile, adapters: &mut WatchedFile) {
    let inputs = store.inputs();
    if let Some(news) = rollout.poll(&inputs.rollout) {
        let news = news.and_then(|text| parse_rollout(&inputs.rollout, text));
        store.apply_rollout_file(news);
        // The Rollout says under which key of a ConfigMap the adapters stand.
        *adapters = WatchedFile::default();
    }
    if let Some(news) = adapters.poll(&inputs.adapters) {
        let picture = store.snapshot();
        let key = &picture.rollout.spec.adapters_ref.key;
        store.apply_adapters_file(news.and_then(|text| parse_adapters(&inputs.adapters, &text, key)));
    }
}

type FileContent = Result<String, String>;

/// One file, and what was seen of it.
#[derive(Default)]
struct WatchedFile {
    accepted: Option<FileContent>,
    stamp: Option<FileStamp>,
    pending: Option<FileContent>,
}

/// What tells that a file may have changed, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp(Option<(std::time::SystemTime, u64, u64)>);

impl WatchedFile {
    /// The content, where it is another than was taken before, and was the same at the last look.
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
