//! The scenarios' vocabulary and oracle, and the demo, over the parts of `rollora-testbed`.
//!
//! A scenario says what a person does and then sees, over a [`bed::Bed`]: `bed.list(V2)`, `bed.sees(split(…))`. Clients
//! ([`traffic`]) keep a record of every request, [`rules`] one of every rule that was in force, and [`judge`] compares
//! the two. Nothing here sleeps and hopes: it waits for conditions ([`seen`]), and says everything there is to see when
//! one does not come true.

pub mod cluster;
pub mod conditions;
pub mod demo;
pub mod files;
pub mod harness;
pub mod local;
pub mod oracle;
pub mod rollora_local;
pub mod rule_recorder;
pub mod scenario;
pub mod traffic;
