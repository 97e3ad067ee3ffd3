//! `rollora-ext-proc`.
fn main() {}
