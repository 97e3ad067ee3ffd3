//! Fuzz target of `cargo xtask fuzz restore`; the test suite runs the same harness on random input.
#![no_main]

#[path = "../../crates/router/tests/harness/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::restore(bytes));
