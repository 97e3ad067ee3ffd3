//! Paths, and who is responsible for which source.

use crate::{Fetch, FetchError, Fetched, Hub, Source, Store, Told};
use std::{path::PathBuf, sync::Arc};

/// Adapters that are there already, at a path that vLLM sees. Whether it is there only vLLM can say: the volume need
/// not be mounted here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files;

impl Store for Files {
    fn place(&self, source: &Source) -> PathBuf {
        match source {
            Source::Path(path) => PathBuf::from(path),
            Source::Hub(name) => PathBuf::from(&name.repository),
        }
    }

    fn fetch<'a>(&'a self, source: &'a Source, _told: Told<'a>) -> Fetch<'a> {
        let path = self.place(source);
        Box::pin(async move { Ok::<_, FetchError>(Fetched { path, commit: None }) })
    }
}

/// Every place that keeps adapters.
#[derive(Debug, Clone)]
pub struct Stores {
    files: Files,
    hub: Arc<Hub>,
}

impl Stores {
    /// Paths as they are, names from `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { files: Files, hub }
    }

    fn responsible(&self, source: &Source) -> &dyn Store {
        match source {
            Source::Path(_) => &self.files,
            Source::Hub(_) => self.hub.as_ref(),
        }
    }
}

impl Store for Stores {
    fn place(&self, source: &Source) -> PathBuf {
        self.responsible(source).place(source)
    }

    fn fetch<'a>(&'a self, source: &'a Source, told: Told<'a>) -> Fetch<'a> {
        self.responsible(source).fetch(source, told)
    }
}
