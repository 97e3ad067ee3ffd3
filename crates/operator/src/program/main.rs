//! `rollora-operator`.
fn main() {}
