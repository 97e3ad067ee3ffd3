//! Reconciles one vLLM server with its adapters file: loads, verifies and unloads LoRA adapters.
//!
//! A [`Sidecar`] receives the desired adapters through a channel and publishes the status of its server. It observes (a
//! poll of the server, the end of a call, a closed connection), decides, and acts:
//! - [`spec`]: what the adapters file and the operator directives want of each id; [`state`]: what is known of the
//!   server;
//! - [`decide`], [`readiness`] and [`status`]: pure functions of that state and the time;
//! - [`run`](Sidecar::run): the loop, which owns the connections and the clock.
//!
//! [`file_watch`] and [`adapters_watch`] detect changes of a file, and [`last_good`] holds its last good content. A
//! caller with another source of the adapters needs only the last of them.
//!
//! What this crate deliberately does not do: it never replaces weights under a loaded id, never touches a base model or
//! an adapter that the file does not list, and never deletes files.

#![warn(missing_docs)]

pub mod adapters_watch;
pub mod backoff;
mod clock;
mod config;
mod connection_watch;
pub mod decide;
mod execute;
pub mod file_watch;
pub mod last_good;
pub mod readiness;
mod run;
pub mod source;
pub mod spec;
pub mod state;
pub mod status;
#[cfg(test)]
mod testbed;
mod transition_log;

pub use config::{PollIntervals, SidecarConfig, SidecarPolicy};
pub use run::{CallObserver, CompletedCall, Heartbeat, RefreshCallback, Sidecar, UsagePollBoost, full_status};
pub use source::AdapterSourcePolicy;
