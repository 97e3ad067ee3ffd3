//! The ext_proc server and a real Envoy, and nothing else around them: every mode of the filter, every framing of a
//! body, replicas that go away and clients that do.
//!
//! The server runs in this process over rules that never change; what a cluster adds is in the scenarios. Only the soak
//! has replicas of the program, and an API server whose rules change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod clients;
mod disconnects;
mod fixture;
mod model_server;
mod modes;
mod routing_headers;
mod shutdown;
mod soak;
mod vectors;
