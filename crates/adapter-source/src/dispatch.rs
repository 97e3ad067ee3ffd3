//! Paths, and who is responsible for which source.

use crate::{AdapterSource, FetchError, FetchFuture, FetchedAdapter, Hub, ProgressSink, SourceRef};
use std::{path::PathBuf, sync::Arc};

/// Adapters that are there already, at a path that vLLM sees. Whether it is there only vLLM can say: the volume need
/// not be mounted here.
#[derive(Debug, Clone, Copy, Default)]
pub struct PathSource;

impl AdapterSource for PathSource {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        match source {
            SourceRef::Path(path) => PathBuf::from(path),
            SourceRef::Hub(name) => PathBuf::from(&name.repository),
        }
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, _told: ProgressSink<'a>) -> FetchFuture<'a> {
        let path = self.local_path(source);
        Box::pin(async move { Ok::<_, FetchError>(FetchedAdapter { path, commit: None }) })
    }
}

/// Every place that keeps adapters.
#[derive(Debug, Clone)]
pub struct SourceDispatcher {
    paths: PathSource,
    hub: Arc<Hub>,
}

impl SourceDispatcher {
    /// Paths as they are, names from `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { paths: PathSource, hub }
    }

    fn source_for(&self, source: &SourceRef) -> &dyn AdapterSource {
        match source {
            SourceRef::Path(_) => &self.paths,
            SourceRef::Hub(_) => self.hub.as_ref(),
        }
    }
}

impl AdapterSource for SourceDispatcher {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        self.source_for(source).local_path(source)
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, told: ProgressSink<'a>) -> FetchFuture<'a> {
        self.source_for(source).fetch(source, told)
    }
}
