//! The demo: walks through the whole guide on one screen, on one machine or on the parts of a cluster.
//!
//! The exit code is 0 only if every printed check was observed to hold. Every process that the demo starts ends with
//! it, also after Ctrl-C.

mod cluster_demo;
mod environment;
mod keep_running;
mod local_demo;
mod screen;
mod setup;
mod walkthrough;

use crate::harness::Harness;
use anyhow::Result;
use environment::DemoEnvironment;
use screen::Screen;
use setup::DemoSetup;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use walkthrough::Walkthrough;

/// Command-line arguments of the demo.
#[derive(Debug, Clone, Copy, Default, clap::Parser)]
#[command(name = "demo", about = "The LoRA adapter rollout guide on this machine, start to finish")]
pub struct DemoArgs {
    /// Use real vLLM servers on the CPU, from the folder that ROLLORA_VLLM_HOME names
    #[arg(long)]
    pub vllm: bool,
    /// Run on a real API server and Envoy, from the folders that ROLLORA_CONTROL_PLANE_HOME and ROLLORA_ENVOY_HOME name
    #[arg(long)]
    pub cluster: bool,
    /// Leave everything running at the end and print commands to try
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo to its end, or until SIGINT or SIGTERM: exit code 130 or 143.
pub async fn run(arguments: DemoArgs) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut screen = Screen::new();
    // Dropping the unfinished branch ends all processes of the demo.
    let result = tokio::select! {
        result = run_demo(arguments, &mut screen) => result.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    };
    screen.clear_progress();
    result
}

async fn run_demo(arguments: DemoArgs, screen: &mut Screen) -> Result<()> {
    let setup = if arguments.vllm { DemoSetup::real()? } else { DemoSetup::simulated() };
    if arguments.cluster {
        cluster_demo::run_on_cluster(arguments, &setup, screen).await
    } else {
        local_demo::run_locally(arguments, &setup, screen).await
    }
}

/// Walks through the guide on a harness that is ready.
async fn run_walkthrough<E: DemoEnvironment>(
    mut harness: Harness<E>,
    setup: &DemoSetup,
    screen: &mut Screen,
) -> Result<Harness<E>> {
    let result = Walkthrough::new(&mut harness, screen, setup).run().await;
    if let Err(error) = result {
        screen.clear_progress();
        let logs = harness.environment.logs();
        return Err(error.context(format!("the demo did not complete the guide\n{logs}")));
    }
    Ok(harness)
}
