//! The seam: what a place that keeps adapters has to do.

use crate::SourceRef;
use std::{
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

/// A fetch under way. Dropping it stops it; what was brought so far is used by the next try.
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<FetchedAdapter, FetchError>> + Send + 'a>>;

/// Is told how far a fetch is.
pub type ProgressSink<'a> = &'a (dyn Fn(FetchProgress) + Send + Sync);

/// A place that keeps adapters.
pub trait AdapterSource: fmt::Debug + Send + Sync {
    /// Where `source` is, or will be when it was fetched: the path that vLLM is given. A function of the text alone,
    /// so that a list of models tells what an adapter was loaded from.
    fn local_path(&self, source: &SourceRef) -> PathBuf;

    /// Brings `source` to its [`place`](Self::place). Where it is there already, whole and checked, nothing is asked
    /// of anybody.
    fn fetch<'a>(&'a self, source: &'a SourceRef, progress: ProgressSink<'a>) -> FetchFuture<'a>;
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedAdapter {
    /// The path that vLLM is given.
    pub path: PathBuf,
    /// The commit that a revision stood for, where the place has such a thing.
    pub commit: Option<String>,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all; none while they are not known.
    pub total_bytes: Option<u64>,
}

/// The class of a [`FetchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchReason {
    /// The hub cannot be reached, or broke off.
    HubUnreachable,
    /// The hub wants another token (401, 403).
    HubUnauthorized,
    /// The hub has no such repository or revision (404).
    HubNotFound,
    /// The hub asks for patience (429).
    HubRateLimited,
    /// The hub answered something else.
    HubError,
    /// What came is not what the hub announced: a size or hash differs.
    Corrupt,
    /// More bytes than are allowed.
    TooLarge,
    /// The adapter asks for a higher rank than vLLM takes.
    RankTooHigh,
    /// Not a LoRA adapter that vLLM could load: its configuration, its files.
    BadAdapter,
    /// The disk refused.
    Disk,
}

impl FetchReason {
    /// One CamelCase word.
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
    /// The class of it.
    pub reason: FetchReason,
    /// What happened, to what, and what to do.
    pub message: String,
    /// How long the other side asks to be left alone.
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
            format!("{path} cannot be written ({error}): the volume of the adapters needs room and must be writable"),
        )
    }
}
