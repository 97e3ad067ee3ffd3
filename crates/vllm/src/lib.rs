//! Typed client of one vLLM server's adapter endpoints. It classifies every failure into one error type.
//!
//! - [`Endpoint`] describes the server, [`VllmClient`] calls it, [`VllmError`] says what failed.
//! - [`classify_response`] is the only place in the project that interprets vLLM's responses: a pure function of the
//!   call and the response, tested against recorded responses of the real server.
//!
//! The client deliberately does not retry, cache, or decide. Callers decide by [`VllmError::is_retryable`],
//! [`VllmError::may_have_succeeded`] and [`VllmError::needs_intervention`].

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
