//! `rollora-sidecar`.
fn main() {}
