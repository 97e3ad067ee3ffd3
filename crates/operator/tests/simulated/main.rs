//! The operator in a simulated world: servers with sidecars, routers that lag, and a store in which any call can fail,
//! hang, have an unknown outcome, or be the last one before a crash. Time is virtual; each run is determined by its
//! inputs.

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
