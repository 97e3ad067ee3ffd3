//! The program `rollora`: shows, explains and controls a rollout, and runs all of Rollora on one machine.

mod args;
mod client;
mod command;
mod intent;
mod local;
mod render;
mod runtime;
mod show;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // This fails only if a provider is installed already, which is the same one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let result = command::Command::try_from(args::Args::parse()).and_then(runtime::run);
    result.unwrap_or_else(runtime::CliError::report)
}
