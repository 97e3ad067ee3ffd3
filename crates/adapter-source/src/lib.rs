//! Brings adapters from where they are kept into a folder that vLLM reads.
//!
//! - [`source`]: what an entry's `source` is; [`Store`]: the seam, what a place that keeps adapters has to do;
//! - [`Hub`]: a hub that speaks the interface of Hugging Face's; [`Files`]: paths, which are there already; [`Stores`]
//!   sends each source to the one that is responsible;
//! - [`Folder`]: the folder on this machine, what stands in it, and who else uses it; [`cleanup`]: what of that may go.
//!
//! Invariants:
//! - What stands at a [`place`](Store::place) is whole: it was checked against the hub's sizes and hashes beside it,
//!   written to the disk, and renamed into place.
//! - Nothing is run or unpacked: tensors in `safetensors`, and small texts.
//! - A token goes to the hub alone, and into no error, log or file.

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
