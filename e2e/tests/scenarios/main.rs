//! What a user is promised, tried with the real programs: one file a theme, each test one scenario.
//!
//! `rollora` must be built beside the tests (`cargo build -p rollora --bin rollora`; `cargo xtask test` does so).
//! With `ROLLORA_LONG=1` the repetitions and the long fault schedules run too, and numbers go to standard error.

mod adoption;
mod bad_adapters;
mod bad_input;
mod bad_objects;
mod capacity;
mod chain;
mod demo;
mod endurance;
mod gitops;
mod groups;
mod guide;
mod keys;
mod kills;
mod leaving;
mod losses;
mod minds;
mod mounts;
mod numbers;
mod objects;
mod permissions;
mod picker;
mod pods;
mod real_sidecar;
mod real_vllm;
mod removed_kinds;
mod replicas;
mod reports;
mod rivals;
mod script;
mod sharing;
mod state;
mod steps;
mod streams;
mod weights;
mod writes;
