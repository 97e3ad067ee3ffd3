//! Rollora on one machine: the operator's ports over files and a state folder, and a small streaming gateway.
//!
//! [`run`] runs all parts in one process. Its control socket serves an [`Overview`] to the CLI.

#![warn(missing_docs)]

mod admin;
mod clock;
mod config;
mod control;
mod desired;
mod document_store;
mod fleet;
mod gateway;
mod input;
mod overview;
mod process;
mod snapshot;
mod startup;
pub mod state;

pub use config::{LocalConfig, ServerUrlError, parse_server_url};
pub use control::{ControlError, IntentRequest, SOCKET_NAME};
pub use document_store::InputFiles;
pub use overview::{ErrorResponse, FileView, Overview, ServerView};
pub use process::{LocalError, run};
pub use rollora_vllm::{ApiKey, Endpoint};
pub use snapshot::EventRecord;
