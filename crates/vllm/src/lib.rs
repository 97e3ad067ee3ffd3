//! Typed client for the LoRA adapter endpoints of one vLLM server; classifies every response into one error type.
//!
//! - [`Endpoint`] is the address of the server, [`VllmClient`] sends requests to it, [`VllmError`] is the reason for a
//!   failed call.
//! - [`classify_response`] is the only place in the project that interprets vLLM's responses. It is a pure function of
//!   the call and its response, and is tested against recorded responses of the real server.
//!
//! The crate deliberately does not retry, keep state between calls, or decide anything. The caller decides whether to
//! retry, with the help of [`VllmError::is_retryable`], [`VllmError::may_have_succeeded`] and
//! [`VllmError::needs_intervention`].

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
