//! Envoy external processor that applies the routing of `rollora-router` to requests.
//!
//! [`processor`] handles one stream as a function of its messages. The modules around it contain the protocol's
//! messages, gRPC with its methods, the connections, and the metrics port. [`ExtProcServer`] combines them over any
//! rules; the program ([`run`]) feeds it with the rewrites of a cluster.

#![warn(missing_docs)]

mod admin;
mod certificate;
mod clock;
mod connections;
pub mod fixed_exchange;
#[cfg(test)]
mod fixtures;
mod grpc;
mod health;
pub mod no_op;
mod processor;
mod processor_call;
mod program;
mod proto;
mod readiness;
mod rule_source;
mod server;
mod service;

pub use certificate::{CertificateError, CertificateFiles};
pub use processor::{RewriteMode, RewriteOptions};
pub use program::{ProgramOptions, run};
pub use readiness::ServerReadiness;
pub use server::{ExtProcServer, Listeners, ServerSettings};
