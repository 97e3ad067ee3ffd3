//! What a user is promised, tried with the real programs: one file a theme, each test one scenario.
//!
//! `rollora` must be built beside the tests (`cargo build -p rollora-cli --bin rollora`; `cargo xtask test` does so).
//! With `ROLLORA_LONG=1` the repetitions and the long fault schedules run too, and numbers go to standard error.

#[cfg(feature = "cluster")]
mod adoption;
mod bad_adapters;
mod bad_input;
#[cfg(feature = "cluster")]
mod bad_objects;
mod capacity;
mod chain;
mod demo;
mod endurance;
#[cfg(feature = "cluster")]
mod gitops;
#[cfg(feature = "cluster")]
mod groups;
mod guide;
mod keys;
mod kills;
#[cfg(feature = "cluster")]
mod leaving;
#[cfg(feature = "cluster")]
mod losses;
mod minds;
#[cfg(feature = "cluster")]
mod mounts;
mod numbers;
#[cfg(feature = "cluster")]
mod objects;
#[cfg(feature = "cluster")]
mod permissions;
#[cfg(feature = "cluster")]
mod picker;
#[cfg(feature = "cluster")]
mod pods;
mod real_sidecar;
mod real_vllm;
#[cfg(feature = "cluster")]
mod removed_kinds;
#[cfg(feature = "cluster")]
mod replicas;
#[cfg(feature = "cluster")]
mod reports;
#[cfg(feature = "cluster")]
mod rivals;
#[cfg(feature = "cluster")]
mod script;
#[cfg(feature = "cluster")]
mod sharing;
mod state;
#[cfg(feature = "cluster")]
mod steps;
mod streams;
mod weights;
#[cfg(feature = "cluster")]
mod writes;
