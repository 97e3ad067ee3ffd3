//! Rollora on one machine: the ports over files and a state folder, and a small streaming gateway.
//!
//! [`run`] is everything in one process. [`Overview`] is what it tells over its control socket.

mod clock;
mod config;
mod control;
mod desired;
mod documents;
mod fleet;
mod gateway;
mod input;
mod overview;
mod process;
mod settle;
pub mod state;
mod store;
mod telemetry;

pub use config::{Config, ServerError, parse_server};
pub use control::{ControlError, IntentRequest, SOCKET};
pub use documents::EventRecord;
pub use overview::{FileView, Overview, Refused, ServerView};
pub use process::{LocalError, run};
pub use rollora_vllm::{ApiKey, Endpoint};
pub use store::Inputs;
