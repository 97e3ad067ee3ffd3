//! Envoy's external processing protocol over the router.
//!
//! [`processor`] is what happens on one stream, as a function of its messages; around it the protocol's messages, gRPC and
//! its methods, the connections, and what the metrics port tells. [`Server`] puts them together over rules that come
//! from anywhere; the program feeds it from a cluster ([`run`]).

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
