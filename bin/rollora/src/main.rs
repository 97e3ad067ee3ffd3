//! `rollora`: looks, explains, acts; and `rollora local`.

mod act;
mod args;
mod client;
mod command;
mod local;
mod look;
mod render;
mod shell;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only where there is a provider already, which is then this one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let ended = command::Command::try_from(args::Args::parse()).and_then(shell::run);
    ended.unwrap_or_else(shell::Failure::report)
}
