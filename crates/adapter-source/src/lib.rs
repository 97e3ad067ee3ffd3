//! Downloads adapters from a hub into a directory that vLLM reads.
//!
//! - [`source`] parses an entry's `source`; [`AdapterSource`] is the trait of everything that provides adapters.
//! - [`Hub`] downloads from a hub with the API of Hugging Face; [`PathSource`] handles paths, which need no download;
//!   [`SourceDispatcher`] selects one of the two.
//! - [`CacheDir`] is the directory of downloaded adapters, which several sidecars can share; [`eviction`] selects the
//!   adapters to remove from it.
//!
//! Invariants:
//! - An adapter at its [`local_path`](AdapterSource::local_path) is complete: it was checked against the hub's sizes
//!   and hashes, synced to disk, and then renamed to that path.
//! - Nothing is executed or unpacked: only `safetensors` and small text files are downloaded.
//! - A token is sent only to the hub and never appears in an error, log or file.

mod cache_dir;
mod dispatch;
pub mod eviction;
mod fetch;
mod hub;
mod manifest;
pub mod source;
mod token;
mod validate;

pub use cache_dir::{CacheDir, CacheDirError};
pub use dispatch::{PathSource, SourceDispatcher};
pub use fetch::{AdapterSource, FetchError, FetchFuture, FetchProgress, FetchReason, FetchedAdapter, ProgressSink};
pub use hub::{Hub, HubError, HubLimits};
pub use source::{HubRef, SourceRef};
pub use token::HubToken;
pub use validate::ServerConstraints;
