//! Fetches LoRA adapters from their sources into a folder that vLLM reads.
//!
//! - [`source`] parses the `source` of an adapters-file entry into a [`SourceRef`]; [`AdapterSource`] is the trait that
//!   every source implements.
//! - [`Hub`] is a hub with Hugging Face's API; [`PathSource`] stands for paths, which need no fetch;
//!   [`SourceDispatcher`] selects one of them for each [`SourceRef`].
//! - [`CacheDir`] is the local folder of fetched adapters, which several processes may share; [`eviction`] selects the
//!   adapters to remove from it.
//!
//! The crate deliberately does not decide when to fetch or retry, and does not talk to vLLM.
//!
//! Invariants:
//! - The files of a hub at [`AdapterSource::local_path`] are complete: their sizes and hashes were compared with those
//!   that the hub announced, and they were synced to disk before they were renamed to this path.
//! - Nothing is executed or unpacked: only `safetensors` files and small text files are fetched.
//! - A token is sent to the hub only, and appears in no error, log or file.

#![warn(missing_docs)]

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
