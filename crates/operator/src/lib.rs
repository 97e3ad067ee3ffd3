//! Asks two ports what is, the plan what to do, and tells the ports.

pub mod ports;
