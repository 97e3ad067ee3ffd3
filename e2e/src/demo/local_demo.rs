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

/// Runs from the start of the servers to the end of the walkthrough.
pub(super) async fn run_locally(arguments: DemoArgs, setup: &DemoSetup, screen: &mut Screen) -> Result<()> {
    let starting = format!("{} vLLM servers are starting", setup.setup.servers.len());
    let environment = screen
        .show_while(&starting, LocalEnvironment::start(&setup.setup))
        .await
        .context("the demo could not start")?;
    print_header(screen, setup, &environment);
    let harness = run_walkthrough(Harness::on(environment), setup, screen).await?;
    screen.print_summary("");
    if arguments.keep {
        keep_running::wait_until_interrupted(&keep_running::local_hints(&harness.environment, &setup.v3)?, screen)
            .await?;
    }
    Ok(())
}

fn print_header(screen: &mut Screen, setup: &DemoSetup, environment: &LocalEnvironment) {
    let title = screen.paint(ScreenStyle::Bold, "The LoRA adapter rollout guide on one machine");
    screen.print_line(&title);
    let servers: Vec<_> = environment.servers().iter().map(VllmServer::name).collect();
    let vllm = format!("vLLM ({})", setup.server_label);
    screen.print_line(&format!("  {vllm:<23}  {}", servers.join("  ")));
    screen.print_line(&format!("  {:<23}  {}", "rollora local", environment.gateway()));
}
