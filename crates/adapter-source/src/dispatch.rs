//! Sources that are paths, and the dispatch of each source to its implementation.

use crate::{AdapterSource, FetchError, FetchFuture, FetchedAdapter, Hub, ProgressSink, SourceRef};
use std::{path::PathBuf, sync::Arc};

/// Source of adapters at a path that vLLM sees. Fetching does nothing and does not check that the path exists, because
/// the volume may be mounted only in vLLM's container.
#[derive(Debug, Clone, Copy, Default)]
pub struct PathSource;

impl AdapterSource for PathSource {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        match source {
            SourceRef::Path(path) => PathBuf::from(path),
            SourceRef::Hub(name) => PathBuf::from(&name.repository),
        }
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, _progress: ProgressSink<'a>) -> FetchFuture<'a> {
        let path = self.local_path(source);
        Box::pin(async move { Ok::<_, FetchError>(FetchedAdapter { path, commit: None }) })
    }
}

/// Dispatches each source to its implementation: [`PathSource`] or [`Hub`].
#[derive(Debug, Clone)]
pub struct SourceDispatcher {
    paths: PathSource,
    hub: Arc<Hub>,
}

impl SourceDispatcher {
    /// Creates a dispatcher that downloads hub names from `hub`.
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

    fn fetch<'a>(&'a self, source: &'a SourceRef, progress: ProgressSink<'a>) -> FetchFuture<'a> {
        self.source_for(source).fetch(source, progress)
    }
}
