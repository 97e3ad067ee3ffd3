//! The rollout logic as pure functions: every phase and gate of a rollout, without I/O and without a clock.
//!
//! [`decide()`] takes the observed state and the time, and returns the new status, the writes that follow from it, the
//! events to publish, and when to decide again. It contains two small state machines, and neither reads the other's
//! state: traffic (how much the desired adapter gets) and retirement (how an adapter that lost its weight is unloaded).
//!
//! Invariants:
//! - The caller must write the status before the effects. Effects are found by comparing the status with the observed
//!   state, so a crash between any two writes is harmless: the next decision finds what is left.
//! - An abort needs no observation except the rewrite.
//! - Every state that waits names what it waits for.

#![warn(missing_docs)]

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
