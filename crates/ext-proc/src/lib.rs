//! Envoy's external processing protocol over the router.
//!
//! [`processor`] is what happens on one stream, as a function of its messages; around it the protocol's messages, gRPC and
//! its methods, the connections, and what the metrics port tells. [`Server`] puts them together over rules that come
//! from anywhere; the program feeds it from a cluster ([`run`]).

mod certificate;
mod clock;
mod connections;
mod feed;
pub mod fixed_exchange;
#[cfg(test)]
mod fixtures;
mod grpc;
mod health;
pub mod no_op;
mod processor;
mod program;
mod protocol;
mod readiness;
mod server;
mod service;
mod telemetry;
mod timed;

pub use certificate::{CertificateError, Files};
pub use processor::{How, Rewrite};
pub use program::{Options, run};
pub use readiness::Readiness;
pub use server::{Listeners, Server, Settings};
