//! The demo on one machine: `rollora local` and its servers.

use super::{
    Arguments, keep,
    screen::{Look, Screen},
    stage::Stage,
    tell,
};
use crate::{
    bed::{Bed, Place as _},
    machine::Machine,
};
use anyhow::{Context as _, Result};
use rollora_testbed::server::VllmServer;

/// From the start of the servers to the end of the story.
pub(super) async fn play(arguments: Arguments, stage: &Stage, screen: &mut Screen) -> Result<()> {
    let starting = format!("{} vLLM servers start", stage.setup.servers.len());
    let machine = screen.during(&starting, Machine::start(&stage.setup)).await.context("the demo could not start")?;
    head(screen, stage, &machine);
    let bed = tell(Bed::at(machine), stage, screen).await?;
    screen.end("");
    if arguments.keep {
        keep::running(&keep::of_machine(&bed.place, &stage.v3)?, screen).await?;
    }
    Ok(())
}

fn head(screen: &mut Screen, stage: &Stage, machine: &Machine) {
    let title = screen.paint(Look::Bold, "The LoRA adapter rollout guide, by itself");
    screen.line(&title);
    let servers: Vec<_> = machine.servers().iter().map(VllmServer::name).collect();
    let vllm = format!("vLLM ({})", stage.servers);
    screen.line(&format!("  {vllm:<23}  {}", servers.join("  ")));
    screen.line(&format!("  {:<23}  {}", "rollora local", machine.gateway()));
}
