//! The two files that a person edits: reading them strictly, and noticing that they changed.
//!
//! A file is taken once two looks in a row found the same content, so that one which an editor is still writing, or
//! which is away for a moment while it is replaced, is not mistaken for what the person meant.

#[cfg(test)]
mod tests;

use crate::{
    documents::Adapters,
    store::{Inputs, LocalStore},
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
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Reads both files; every problem of either, in words.
pub(crate) fn read_both(inputs: &Inputs) -> Result<(RolloutFile, Adapters), Vec<String>> {
    let rollout = text(&inputs.rollout).and_then(|text| parse_rollout(&inputs.rollout, text));
    // Where the Rollout cannot be read, the adapters file is checked all the same, under its usual key.
    let key = rollout.as_ref().map_or("configmap.yaml", |file| file.rollout.spec.adapters_ref.key.as_str());
    let adapters = text(&inputs.adapters).and_then(|text| parse_adapters(&inputs.adapters, &text, key));
    match (rollout, adapters) {
        (Ok(rollout), Ok(adapters)) => Ok((rollout, adapters)),
        (rollout, adapters) => Err([rollout.err(), adapters.err()].into_iter().flatten().collect()),
    }
}

/// A Rollout as it stands in its file.
#[derive(Debug)]
pub(crate) struct RolloutFile {
    pub(crate) rollout: Rollout,
    text: String,
}

impl RolloutFile {
    /// Says what is wrong with fields of the Rollout, with file and line.
    pub(crate) fn explain(&self, path: &Path, errors: Vec<FieldError>) -> String {
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
pub(crate) fn parse_rollout(path: &Path, text: String) -> Result<RolloutFile, String> {
    match Rollout::from_yaml(&text) {
        Ok(rollout) => Ok(RolloutFile { rollout, text }),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Reads an adapters file, plain or in its ConfigMap under `key`.
pub(crate) fn parse_adapters(path: &Path, text: &str, key: &str) -> Result<Adapters, String> {
    let read = AdaptersText::new(text, key).and_then(|text| text.parse().map(|parsed| (text, parsed)));
    let (text, parsed) = read.map_err(|error| format!("{}: {error}", path.display()))?;
    for both in &parsed.in_both_lists {
        tracing::warn!("{}: {both}", path.display());
    }
    Ok(Adapters { text: Arc::new(text), file: Arc::new(parsed.file) })
}

fn text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path}: there is no such file: put it there"),
        io::ErrorKind::InvalidData => format!("{path}: not UTF-8: save it as UTF-8 text"),
        _ => format!("{path} cannot be read: {error}"),
    }
}

/// Watches both files for as long as the process runs, and tells the store.
pub(crate) async fn watch(store: LocalStore, stop: CancellationToken) {
    let (mut rollout, mut adapters) = (Watched::default(), Watched::default());
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let (again, mut before) = (store.clone(), (rollout, adapters));
        let looked = tokio::task::spawn_blocking(move || {
            look(&again, &mut before.0, &mut before.1);
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
pub(crate) async fn read_adapters_now(store: &LocalStore) {
    let path = store.inputs().adapters.clone();
    let mut seen = read(path.clone()).await;
    while seen.as_deref() != Ok(store.picture().adapters.text.full_text()) {
        tokio::time::sleep(LOOK_EVERY).await;
        let again = read(path.clone()).await;
        if again == seen {
            break;
        }
        seen = again;
    }
    let key = store.picture().rollout.spec.adapters_ref.key.clone();
    if let Ok(adapters) = seen.and_then(|text| parse_adapters(&path, &text, &key)) {
        store.adapters_file(Ok(adapters));
    }
}

async fn read(path: PathBuf) -> Content {
    let read = tokio::task::spawn_blocking(move || text(&path));
    read.await.unwrap_or_else(|error| Err(format!("the file was not read: {error}")))
}

fn look(store: &LocalStore, rollout: &mut Watched, adapters: &mut Watched) {
    let inputs = store.inputs();
    if let Some(news) = rollout.look(&inputs.rollout) {
        let news = news.and_then(|text| parse_rollout(&inputs.rollout, text));
        store.rollout_file(news);
        // The Rollout says under which key of a ConfigMap the adapters stand.
        *adapters = Watched::default();
    }
    if let Some(news) = adapters.look(&inputs.adapters) {
        let picture = store.picture();
        let key = &picture.rollout.spec.adapters_ref.key;
        store.adapters_file(news.and_then(|text| parse_adapters(&inputs.adapters, &text, key)));
    }
}

type Content = Result<String, String>;

/// One file, and what was seen of it.
#[derive(Default)]
struct Watched {
    taken: Option<Content>,
    stamp: Option<Stamp>,
    candidate: Option<Content>,
}

/// What tells that a file may have changed, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Option<(std::time::SystemTime, u64, u64)>);

impl Watched {
    /// The content, where it is another than was taken before, and was the same at the last look.
    fn look(&mut self, path: &Path) -> Option<Content> {
        let stamp = Stamp::of(path);
        if self.candidate.is_none() && self.stamp.as_ref() == Some(&stamp) {
            return None;
        }
        self.stamp = Some(stamp);
        let content = text(path);
        if self.taken.as_ref() == Some(&content) {
            self.candidate = None;
            return None;
        }
        if self.candidate.as_ref() != Some(&content) {
            self.candidate = Some(content);
            return None;
        }
        self.candidate = None;
        self.taken = Some(content.clone());
        Some(content)
    }
}

impl Stamp {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(fs::metadata(path).ok().and_then(|file| Some((file.modified().ok()?, file.len(), file.ino()))))
    }
}
