//! The operator over a simulated world: servers with sidecars, routers that lag, a store in which any call can fail,
//! hang, end unknown, or be the last one before a crash. Time is virtual, every run is decided by its inputs.

#![cfg(test)]

mod bad_input;
mod beside;
mod crashes;
mod deletion;
mod driver;
mod duo;
mod faults;
mod files;
mod found;
mod guide;
mod invariants;
mod neighbour;
mod pair;
mod past;
mod people;
mod ports;
mod rivals;
mod runner;
mod schedules;
mod server;
mod small;
mod world;
