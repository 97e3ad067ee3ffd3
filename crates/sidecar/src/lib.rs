//! Makes one vLLM server hold exactly what the adapters file says.
//!
//! A [`Sidecar`] is fed with what is desired and tells how its server is. It observes (a look at the server, the end
//! of a call, a closed connection), decides, and acts:
//! - [`wish`]: what file and operator want of each id; [`memory`]: what is known of the server;
//! - [`decide`], [`readiness`] and [`status`]: pure functions of what is known and the time;
//! - [`run`](Sidecar::run): the loop that owns the connections and the clock.
//!
//! [`watch_file`] and [`adapters_watch`] notice changes of a file, [`in_force`] is the last good content; who feeds a
//! sidecar from elsewhere does without the first two.
//!
//! What it deliberately does not do: it never replaces weights under a loaded id, never touches a base model or an
//! adapter that the file does not list, and never deletes files.

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
