//! Path source, and the dispatcher that selects the source for a [`SourceRef`].

use crate::{AdapterSource, FetchError, FetchFuture, FetchedAdapter, Hub, ProgressSink, SourceRef};
use std::{path::PathBuf, sync::Arc};

/// Adapters at paths in vLLM's file system, which need no fetch. Does not check that a path exists: the volume may not
/// be mounted in this process's container.
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

/// Sends each fetch to the source that is responsible for it.
#[derive(Debug, Clone)]
pub struct SourceDispatcher {
    paths: PathSource,
    hub: Arc<Hub>,
}

impl SourceDispatcher {
    /// Creates a dispatcher that returns paths unchanged and fetches hub references from `hub`.
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
