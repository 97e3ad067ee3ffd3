//! The demo: the whole guide on this machine, by itself, told on one screen.
//!
//! The exit code is 0 only when every sentence that was written was seen to be true. Everything that was started ends
//! with the demo, also after Ctrl-C.

mod keep;
mod screen;
mod stage;
mod story;

use crate::{
    bed::{Bed, Place as _},
    machine::Machine,
    server::Server,
};
use anyhow::{Context as _, Result};
use screen::{Look, Screen};
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
    screen.waiting(&format!("{} vLLM servers start", stage.setup.servers.len()));
    let machine = Machine::start(&stage.setup).await.context("the demo could not start")?;
    let mut bed = Bed::at(machine);
    head(screen, &stage, &bed.place);
    let told = Story::new(&mut bed, screen, &stage).tell().await;
    if let Err(error) = told {
        screen.erase();
        let logs = bed.place.logs();
        return Err(error.context(format!("not all of the guide came true\n{logs}")));
    }
    story::end(screen);
    if arguments.keep {
        keep::running(&bed.place, screen).await?;
    }
    Ok(())
}

fn head(screen: &mut Screen, stage: &Stage, machine: &Machine) {
    let title = screen.paint(Look::Bold, "The LoRA adapter rollout guide, by itself");
    screen.line(&title);
    let servers: Vec<_> = machine.servers().iter().map(Server::name).collect();
    let vllm = format!("vLLM ({})", stage.servers);
    screen.line(&format!("  {vllm:<23}  {}", servers.join("  ")));
    screen.line(&format!("  {:<23}  {}", "rollora local", machine.gateway()));
}
