//! `cargo xtask demo` runs this after the build, see [`rollora_e2e::demo`].

use clap::Parser as _;
use rollora_e2e::demo::{DemoArgs, run};
use std::process::ExitCode;

// Two, because the cluster environment has work besides the clients'.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    run(DemoArgs::parse()).await.unwrap_or_else(|error| {
        eprintln!("\nerror: {error:?}");
        ExitCode::FAILURE
    })
}
