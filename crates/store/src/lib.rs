//! Brings adapters from where they are kept into a folder that vLLM reads.

mod fetch;
pub mod source;

pub use fetch::{Fetch, FetchError, FetchReason, Fetched, Progress, Store, Told};
pub use source::{HubName, Source};
