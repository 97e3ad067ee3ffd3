//! `rollora-sidecar`: keeps the vLLM server of its pod at what the adapters file says, and tells how it is.

mod args;
mod feed;
mod keep;
mod key;
mod metrics;
mod run;
mod serve;
mod settings;
mod shelf;
mod supervise;
mod target;
mod trust;
mod watched;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Two TLS providers in one program would panic at the first connection: this is the one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let settings = match settings::Settings::try_from(args::Args::parse()) {
        Ok(settings) => settings,
        Err(problems) => {
            for problem in problems {
                run::say_error(&problem);
            }
            return ExitCode::from(2);
        }
    };
    match run::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
