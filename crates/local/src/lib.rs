//! Rollora on one machine: the ports over files and a state folder, and a small streaming gateway.

mod clock;
pub mod state;
