//! The demo: the whole guide by itself, told on one screen, on one machine or on the parts of a cluster.
//!
//! The exit code is 0 only when every sentence that was written was seen to be true. Everything that was started ends
//! with the demo, also after Ctrl-C.

mod keep;
mod on_a_cluster;
mod on_one_machine;
mod scene;
mod screen;
mod stage;
mod story;

use crate::bed::Bed;
use anyhow::Result;
use scene::Scene;
use screen::Screen;
use stage::Stage;
use std::process::ExitCode;
use story::Story;
use tokio::signal::unix::{SignalKind, signal};

/// What was typed.
#[derive(Debug, Clone, Copy, Default, clap::Parser)]
#[command(name = "demo", about = "The LoRA adapter rollout guide on this machine, by itself")]
pub struct Arguments {
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
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut screen = Screen::new();
    // Whichever arm is not taken is dropped, and all processes with it.
    let result = tokio::select! {
        result = play(arguments, &mut screen) => result.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    };
    screen.erase();
    result
}

async fn play(arguments: Arguments, screen: &mut Screen) -> Result<()> {
    let stage = if arguments.vllm { Stage::real()? } else { Stage::simulated() };
    if arguments.cluster {
        on_a_cluster::play(arguments, &stage, screen).await
    } else {
        on_one_machine::play(arguments, &stage, screen).await
    }
}

/// Tells the story of a bed that has come up.
async fn tell<P: Scene>(mut bed: Bed<P>, stage: &Stage, screen: &mut Screen) -> Result<Bed<P>> {
    let told = Story::new(&mut bed, screen, stage).tell().await;
    if let Err(error) = told {
        screen.erase();
        let logs = bed.place.logs();
        return Err(error.context(format!("not all of the guide came true\n{logs}")));
    }
    Ok(bed)
}
