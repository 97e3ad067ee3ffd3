//! The ext_proc server and a real Envoy, and nothing else around them: every mode of the filter, every framing of a
//! body, replicas that go away and clients that do.
//!
//! The server runs in this process over rules that never change; what a cluster adds is in the scenarios.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod clients;
mod leaving;
mod modes;
mod stage;
mod telling;
mod upstream;
