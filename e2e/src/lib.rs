//! End-to-end scenarios, the oracle that judges their traffic, and the demo, over the parts of `rollora-testbed`.
//!
//! A scenario performs user actions on a [`harness::Harness`] and waits for conditions: `harness.list_adapter(V2)`,
//! `harness.wait_for(traffic_split(…))`. Background clients ([`traffic`]) record every request, the [`rule_recorder`]
//! records every rule that was active at a router, and the [`oracle`] compares the two. Nothing here sleeps for a
//! guessed time: a scenario polls [`conditions`], and a condition that does not come true fails with the complete
//! observed state.

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
