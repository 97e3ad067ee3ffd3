//! Everything goes on running, and the screen says what can be done with it.

use super::screen::Screen;
use crate::{
    bed::Place as _,
    guide::{MODEL, SOURCE, V2, V3},
    machine::Machine,
    process::program,
};
use anyhow::Result;

/// Prints what to play with, and waits until the caller is dropped.
pub(super) async fn running(machine: &Machine, screen: &mut Screen) -> Result<()> {
    let rollora = program("rollora", "rollora-cli")?;
    let rollora = shorter(&rollora.display().to_string());
    let rollora_local = machine.rollora();
    let (state, adapters) = (rollora_local.state(), rollora_local.adapters_file());
    let (state, adapters) = (state.display(), adapters.display());
    let gateway = machine.gateway();
    for line in [
        String::new(),
        "Everything goes on running until Ctrl-C. To play with:".to_owned(),
        format!("  adapters   {adapters}"),
        format!("  rollout    {}", rollora_local.rollout_file().display()),
        format!("  rules      {}/rules   metrics {}/metrics", rollora_local.status(), rollora_local.status()),
        String::new(),
        "  # watch, in another terminal".to_owned(),
        format!("  {rollora} status --watch --state {state}"),
        "  # release a third version: add two lines".to_owned(),
        format!("  sed -i '/id: {V2}/i\\        - id: {V3}\\n          source: {SOURCE}' {adapters}"),
        "  # take it back in the middle".to_owned(),
        format!("  {rollora} abort --state {state}"),
        "  # one request".to_owned(),
        format!("  curl {gateway}/v1/chat/completions -H 'Content-Type: application/json' \\"),
        format!("    -d '{{\"model\": \"{MODEL}\", \"messages\": [{{\"role\": \"user\", \"content\": \"hello\"}}]}}'"),
    ] {
        screen.line(&line);
    }
    std::future::pending().await
}

/// The path from the current folder, where it is below that.
fn shorter(path: &str) -> String {
    let here = std::env::current_dir().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).to_owned()
}
