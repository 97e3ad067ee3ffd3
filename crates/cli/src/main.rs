//! `rollora`.
fn main() {}
