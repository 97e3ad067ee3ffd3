//! The [`AdapterSource`] trait, with its progress and error types.

use crate::SourceRef;
use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

/// Future of a fetch. Dropping it stops the fetch; the next attempt resumes from the bytes on disk.
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<FetchedAdapter, FetchError>> + Send + 'a>>;

/// Callback that receives the progress of a fetch.
pub type ProgressSink<'a> = &'a (dyn Fn(FetchProgress) + Send + Sync);

/// Source of adapters: resolves an entry's `source` to a path that vLLM can load.
pub trait AdapterSource: fmt::Debug + Send + Sync {
    /// Returns the path of `source` that vLLM is given, whether it is already fetched or not. Depends only on the text,
    /// so that the list of models shows which source an adapter was loaded from.
    fn local_path(&self, source: &SourceRef) -> PathBuf;

    /// Fetches `source` to its [`local_path`](Self::local_path). If it is already there and complete, sends no request.
    fn fetch<'a>(&'a self, source: &'a SourceRef, progress: ProgressSink<'a>) -> FetchFuture<'a>;
}

/// Result of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedAdapter {
    /// Path that vLLM is given.
    pub path: PathBuf,
    /// Commit that the revision resolved to; `None` for a path.
    pub commit: Option<String>,
}

/// Progress of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Number of bytes on disk.
    pub bytes: u64,
    /// Total number of bytes; `None` while it is not known.
    pub total_bytes: Option<u64>,
}

/// Class of a [`FetchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchReason {
    /// The hub cannot be reached, or the connection broke.
    HubUnreachable,
    /// The hub rejects the token (401, 403).
    HubUnauthorized,
    /// The hub has no such repository or revision (404).
    HubNotFound,
    /// The hub limits the rate of requests (429).
    HubRateLimited,
    /// The hub sent any other error, or a response that cannot be parsed.
    HubError,
    /// The size or the hash of a file differs from what the hub announced.
    Corrupt,
    /// The adapter is larger than [`HubLimits::max_bytes`](crate::HubLimits::max_bytes).
    TooLarge,
    /// The adapter's rank is higher than vLLM accepts.
    RankTooHigh,
    /// The repository is not a LoRA adapter that vLLM could load, judged by its configuration and files.
    BadAdapter,
    /// A read or write of the local disk failed.
    Disk,
}

impl FetchReason {
    /// Returns the class as one word in CamelCase.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HubUnreachable => "HubUnreachable",
            Self::HubUnauthorized => "HubUnauthorized",
            Self::HubNotFound => "HubNotFound",
            Self::HubRateLimited => "HubRateLimited",
            Self::HubError => "HubError",
            Self::Corrupt => "Corrupt",
            Self::TooLarge => "TooLarge",
            Self::RankTooHigh => "RankTooHigh",
            Self::BadAdapter => "BadAdapter",
            Self::Disk => "Disk",
        }
    }
}

/// Why an adapter could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// Class of the error.
    pub reason: FetchReason,
    /// What failed, on which object, why, and what to do.
    pub message: String,
    /// Delay before the next attempt that the hub asks for (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl FetchError {
    pub(crate) fn new(reason: FetchReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    pub(crate) fn disk(path: &Path, error: &std::io::Error) -> Self {
        let path = path.display();
        Self::new(
            FetchReason::Disk,
            format!("cannot write {path} ({error}): the adapters volume must be writable and have free space"),
        )
    }
}
