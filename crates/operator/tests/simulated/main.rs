//! The operator over a simulated world: servers with sidecars, routers that lag, a store in which any call can fail,
//! hang, end unknown, or be the last one before a crash. Time is virtual, every run is decided by its inputs.

#![cfg(test)]

mod adapters_ref_change;
mod bad_input;
mod concurrent_operators;
mod crashes;
mod deletion;
mod driver;
mod exhaustive;
mod faults;
mod guide;
mod history;
mod invariants;
mod other_rollout;
mod ports;
mod regressions;
mod run_loop;
mod schedules;
mod server;
mod two_operators_driver;
mod two_rollouts;
mod two_rollouts_driver;
mod user_actions;
mod world;
