//! The trait [`AdapterSource`], with the progress, result and error of a fetch.

use crate::SourceRef;
use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

/// A running fetch. Dropping it cancels the fetch; the next fetch resumes from the bytes that are already on disk.
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<FetchedAdapter, FetchError>> + Send + 'a>>;

/// Callback that receives the progress of a fetch.
pub type ProgressSink<'a> = &'a (dyn Fn(FetchProgress) + Send + Sync);

/// A source of adapters, for example a hub.
pub trait AdapterSource: fmt::Debug + Send + Sync {
    /// Returns the path that vLLM loads `source` from, once it is fetched. Depends on the text of `source` only, so
    /// that the path in vLLM's list of models identifies the source of a loaded adapter.
    fn local_path(&self, source: &SourceRef) -> PathBuf;

    /// Fetches `source` to its [`local_path`](Self::local_path). Sends no request if a complete and verified copy is
    /// already there.
    fn fetch<'a>(&'a self, source: &'a SourceRef, progress: ProgressSink<'a>) -> FetchFuture<'a>;
}

/// Result of a successful fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedAdapter {
    /// Path that vLLM loads the adapter from.
    pub path: PathBuf,
    /// Commit that the revision resolved to; `None` for sources without commits, such as paths.
    pub commit: Option<String>,
}

/// Progress of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Number of bytes fetched so far, including those of earlier attempts.
    pub bytes: u64,
    /// Total number of bytes; `None` while it is not known.
    pub total_bytes: Option<u64>,
}

/// Class of a [`FetchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchReason {
    /// The hub cannot be reached, or the connection broke.
    HubUnreachable,
    /// The hub rejects the token, or requires one (401, 403).
    HubUnauthorized,
    /// The hub has no such repository or revision (404).
    HubNotFound,
    /// The hub limits the rate of requests (429).
    HubRateLimited,
    /// The hub sent another error or an invalid response.
    HubError,
    /// The size or hash of a file differs from what the hub announced.
    Corrupt,
    /// The adapter exceeds [`HubLimits::max_bytes`](crate::HubLimits::max_bytes).
    TooLarge,
    /// The adapter's rank exceeds the server's maximum.
    RankTooHigh,
    /// The repository is not a LoRA adapter that vLLM could load, judged by its configuration and files.
    BadAdapter,
    /// Reading or writing the cache directory failed.
    Disk,
}

impl FetchReason {
    /// Returns the class as one CamelCase word, for statuses and metric labels.
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

/// Reason why an adapter could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// Class of the error.
    pub reason: FetchReason,
    /// What failed, on which object, why, and what to do.
    pub message: String,
    /// Delay that the hub requested before the next attempt (`Retry-After`), at most one hour.
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
            format!("cannot read or write {path} ({error}): the adapters volume must be writable and have free space"),
        )
    }
}
