//! `rollora`: looks, explains, acts; and `rollora local`.

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
    // Fails only where there is a provider already, which is then this one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let ended = command::Command::try_from(args::Args::parse()).and_then(runtime::run);
    ended.unwrap_or_else(runtime::CliError::report)
}
