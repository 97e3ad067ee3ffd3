//! The ext_proc server behind a real Envoy: every mode of the filter, every framing of a body, and clients, servers and
//! replicas that disconnect.
//!
//! The server runs in this process with fixed rules; the scenarios cover what a cluster adds. Only the soak runs
//! replicas of the program, with an API server whose rules change.
//! has replicas of the program, and an API server whose rules change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports a failure by a panic")]

mod clients;
mod disconnects;
mod fixture;
mod model_server;
mod modes;
mod routing_headers;
mod shutdown;
mod soak;
mod vectors;
