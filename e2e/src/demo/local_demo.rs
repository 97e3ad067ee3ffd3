//! The demo on one machine: `rollora local` and its servers.

use super::{
    DemoArgs, keep_running, run_walkthrough,
    screen::{Screen, ScreenStyle},
    setup::DemoSetup,
};
use crate::{
    harness::{Environment as _, Harness},
    local::LocalEnvironment,
};
use anyhow::{Context as _, Result};
use rollora_testbed::server::VllmServer;

/// From the start of the servers to the end of the story.
pub(super) async fn run_locally(arguments: DemoArgs, stage: &DemoSetup, screen: &mut Screen) -> Result<()> {
    let starting = format!("{} vLLM servers start", stage.setup.servers.len());
    let machine = screen
        .show_while(&starting, LocalEnvironment::start(&stage.setup))
        .await
        .context("the demo could not start")?;
    print_header(screen, stage, &machine);
    let bed = run_walkthrough(Harness::on(machine), stage, screen).await?;
    screen.print_summary("");
    if arguments.keep {
        keep_running::wait_until_interrupted(&keep_running::local_hints(&bed.environment, &stage.v3)?, screen).await?;
    }
    Ok(())
}

fn print_header(screen: &mut Screen, stage: &DemoSetup, machine: &LocalEnvironment) {
    let title = screen.paint(ScreenStyle::Bold, "The LoRA adapter rollout guide, by itself");
    screen.print_line(&title);
    let servers: Vec<_> = machine.servers().iter().map(VllmServer::name).collect();
    let vllm = format!("vLLM ({})", stage.server_label);
    screen.print_line(&format!("  {vllm:<23}  {}", servers.join("  ")));
    screen.print_line(&format!("  {:<23}  {}", "rollora local", machine.gateway()));
}
