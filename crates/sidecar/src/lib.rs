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
mod ask;
pub mod backoff;
#[cfg(test)]
mod bed;
mod clock;
mod config;
pub mod decide;
pub mod in_force;
pub mod memory;
pub mod readiness;
mod report;
mod run;
mod sentinel;
pub mod source;
pub mod status;
pub mod watch_file;
pub mod wish;

pub use config::{Config, Intervals, Policy};
pub use run::{Call, Observer, Onlookers, Pulse, Refresh, Sidecar, whole_status};
pub use source::Sources;
