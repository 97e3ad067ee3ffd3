//! The demo: the whole guide by itself, told on one screen, on one machine or on the parts of a cluster.
//!
//! The exit code is 0 only when every sentence that was written was seen to be true. Everything that was started ends
//! with the demo, also after Ctrl-C.

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

/// What was typed.
#[derive(Debug, Clone, Copy, Default, clap::Parser)]
#[command(name = "demo", about = "The LoRA adapter rollout guide on this machine, by itself")]
pub struct DemoArgs {
    /// With real vLLM servers on the CPU, from the folder that ROLLORA_VLLM_HOME names
    #[arg(long)]
    pub vllm: bool,
    /// On the parts of a cluster, from the folders that ROLLORA_CONTROL_PLANE_HOME and ROLLORA_ENVOY_HOME name
    #[arg(long)]
    pub cluster: bool,
    /// Leave everything running at the end, and print what to play with
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo to its end, or until somebody wants it to end.
pub async fn run(arguments: DemoArgs) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut screen = Screen::new();
    // Whichever arm is not taken is dropped, and all processes with it.
    let result = tokio::select! {
        result = run_demo(arguments, &mut screen) => result.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    };
    screen.clear_progress();
    result
}

async fn run_demo(arguments: DemoArgs, screen: &mut Screen) -> Result<()> {
    let stage = if arguments.vllm { DemoSetup::real()? } else { DemoSetup::simulated() };
    if arguments.cluster {
        cluster_demo::run_on_cluster(arguments, &stage, screen).await
    } else {
        local_demo::run_locally(arguments, &stage, screen).await
    }
}

/// Tells the story of a bed that has come up.
async fn run_walkthrough<P: DemoEnvironment>(
    mut bed: Harness<P>,
    stage: &DemoSetup,
    screen: &mut Screen,
) -> Result<Harness<P>> {
    let told = Walkthrough::new(&mut bed, screen, stage).run().await;
    if let Err(error) = told {
        screen.clear_progress();
        let logs = bed.environment.logs();
        return Err(error.context(format!("not all of the guide came true\n{logs}")));
    }
    Ok(bed)
}
