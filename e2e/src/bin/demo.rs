//! `cargo xtask demo` runs this after the build, see [`rollora_e2e::demo`].

use clap::Parser as _;
use rollora_e2e::demo::{Arguments, run};
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Arguments::parse()).await.unwrap_or_else(|error| {
        eprintln!("\nerror: {error:?}");
        ExitCode::FAILURE
    })
}
