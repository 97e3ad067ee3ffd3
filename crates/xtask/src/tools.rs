//! The tool cache: what a command has to fetch or build once, kept outside of the repository.
//!
//! The cache is one folder for all clones of a user: `ROLLORA_CACHE`, else `rollora` in the user's cache directory.
//! Each entry is a folder whose name ends in a hash of everything that it is made from, so that clones at different
//! commits never disagree, and a change of a pinned version makes a new entry.
//!
//! Invariants:
//! - An entry is made in a folder beside its place and renamed when it is whole: what has the name is whole.
//! - Who makes or clears an entry holds its lock alone; who uses it holds the lock shared.

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
/// Envoy, the gateway of the cluster bed: `bin/envoy`.
pub(crate) const ENVOY: &ToolRecipe = &envoy::TOOL;
/// The cluster bed's Kubernetes: `bin/kube-apiserver`, `bin/etcd`, `bin/kubectl`, `crds/`.
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
                    eprintln!("{}: the machine's own is new enough", tool.name);
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
                eprintln!("{name}: cleared, {} free again", disk::format_size(size));
            }
            Ok(())
        }
    }
}

/// What a shell has to know so that `cargo test` finds what is there.
fn print_env(cache: &ToolCache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for tool in TOOLS {
        if let (Some(variable), Some(folder)) = (tool.env_var, cache.find(tool)?) {
            writeln!(out, "export {variable}='{}'", folder.display())?;
        }
    }
    Ok(())
}

/// The tools of these names; all where there are none.
fn find_tools(names: &[String]) -> Result<Vec<&'static ToolRecipe>> {
    if names.is_empty() {
        return Ok(TOOLS.to_vec());
    }
    let find = |name: &String| TOOLS.into_iter().find(|tool| tool.name == name);
    names
        .iter()
        .map(|name| match find(name) {
            Some(tool) => Ok(tool),
            None => bail!("there is no tool {name:?}; there are: {}", TOOLS.map(|tool| tool.name).join(", ")),
        })
        .collect()
}

fn print_list(cache: &ToolCache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "tool cache: {}\n", cache.root().display())?;
    writeln!(out, "{:<16} {:<14} {:>8}  {:<13} what for", "name", "key", "size", "state")?;
    for tool in TOOLS {
        for row in cache.rows(tool).with_context(|| format!("cannot look at the entries of {}", tool.name))? {
            let size = row.size.map(disk::format_size).unwrap_or_default();
            writeln!(out, "{:<16} {:<14} {size:>8}  {:<13} {}", tool.name, row.key, row.state.as_str(), tool.purpose)?;
        }
    }
    writeln!(out, "\nAn old version is one that this checkout does not use; another checkout may.")?;
    Ok(())
}
