//! The test bed.

pub mod sim;
