//! Typed client of one vLLM server's adapter endpoints; every answer becomes one error taxonomy.
//!
//! - [`Endpoint`] says where the server is, [`Client`] asks it, [`VllmError`] says what went wrong.
//! - [`interpret`] is the only place in the project that reads meaning out of vLLM's answers: a pure function of
//!   what was asked and what came back, checked against recorded answers of the real server.
//!
//! What it deliberately does not do: retry, remember, or decide. Who calls it knows whether trying again makes
//! sense, and [`VllmError::retryable`], [`VllmError::uncertain`] and [`VllmError::needs_person`] tell.

#![warn(missing_docs)]

mod client;
mod endpoint;
mod error;
mod metrics;
mod models;
mod response;
mod tls;

pub use client::{Timeouts, VllmClient, VllmClientError};
pub use endpoint::{ApiKey, Endpoint, EndpointError};
pub use error::VllmError;
pub use metrics::ServerMetrics;
pub use models::ModelCard;
pub use response::{ApiCall, classify_response};
pub use tls::{CaBundle, ServerName, TlsConfig, TlsConfigError};
