//! `rollora-sidecar`: keeps the vLLM server of its pod at what the adapters file says, and tells how it is.

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
    // Two TLS providers in one program would panic at the first connection: this is the one.
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
