//! `rollora-sidecar`: reconciles the vLLM server of its pod with the adapters file, and serves its status.

mod adapter_cache;
mod admin;
mod api_key;
mod args;
mod config_source;
mod metrics;
mod reloadable;
mod run;
mod server_endpoint;
mod settings;
mod state_file;
mod supervisor;
mod tls;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // With two TLS providers linked, rustls panics at the first connection unless one is installed as the default.
    drop(rustls::crypto::ring::default_provider().install_default());
    let settings = match settings::Settings::try_from(args::Args::parse()) {
        Ok(settings) => settings,
        Err(problems) => {
            for problem in problems {
                run::print_error(&problem);
            }
            return ExitCode::from(2);
        }
    };
    match run::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
