//! `cargo xtask fuzz restore`: the harness that the test command runs with chance instead.
#![no_main]

#[path = "../../crates/router/tests/harness/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::restore(bytes));
