//! Pure: every phase and gate of a rollout. No I/O, no clock.

pub mod event;
pub mod observed;
