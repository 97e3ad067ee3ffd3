//! Pure: every phase and gate of a rollout. No I/O, no clock.
//!
//! [`decide`] takes what was observed and the time, and says what the status is now, which writes follow from it, what
//! people should be told, and when to look again. Two small machines work inside, and neither reads the other's state:
//! traffic (how much the desired adapter gets) and retirement (how an adapter that lost its weight goes).
//!
//! Invariants:
//! - The status is to be written before the effects. Effects are found by comparing the status with what was observed,
//!   so a crash between any two writes is harmless: the next decision finds what is left.
//! - An abort needs no observation but the rewrite.
//! - Everything that waits says for what.

mod adoption;
mod capacity;
mod conflict;
mod decide;
mod desired;
#[cfg(test)]
mod diagram;
mod directives;
mod intent;
mod pilot;
mod residency;
mod retire;
mod retirement;
mod rewrite;
mod routers;
mod status;
mod text;
mod traffic;
mod wait;

pub mod effect;
pub mod event;
pub mod observed;
pub mod rewrite_conditions;

pub use decide::{Decision, DecisionInput, decide, finalize_deleted};
pub use intent::has_pending_abort;
