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
mod machine;
mod nginx;
mod recipe;
mod vllm_cpu;
mod wheel;

pub(crate) use cache::{Cache, Entry};
pub(crate) use recipe::Tool;

/// Real vLLM on the CPU: `venv/bin/python -m vllm.entrypoints.openai.api_server`, `tiny/base`, `tiny/adapters/a1`…
pub(crate) const VLLM_CPU: &Tool = &vllm_cpu::TOOL;
/// Envoy, the gateway of the cluster bed: `bin/envoy`.
pub(crate) const ENVOY: &Tool = &envoy::TOOL;
/// The cluster bed's Kubernetes: `bin/kube-apiserver`, `bin/etcd`, `bin/kubectl`, `crds/`.
pub(crate) const CONTROL_PLANE: &Tool = &control_plane::TOOL;
/// Upstream's endpoint picker: `bin/epp`.
pub(crate) const ENDPOINT_PICKER: &Tool = &endpoint_picker::TOOL;
/// Upstream's body-based router: `bin/bbr`.
pub(crate) const BODY_ROUTER: &Tool = &body_router::TOOL;
/// The reverse proxy that the gateway is measured against: `usr/sbin/nginx`.
pub(crate) const NGINX: &Tool = &nginx::TOOL;

const ALL: [&Tool; 7] = [VLLM_CPU, ENVOY, CONTROL_PLANE, ENDPOINT_PICKER, BODY_ROUTER, &go::TOOL, NGINX];

pub(crate) fn run(command: &ToolsCommand) -> Result<()> {
    let cache = Cache::open()?;
    match command {
        ToolsCommand::List => list(&cache),
        ToolsCommand::Environment => environment(&cache),
        ToolsCommand::Fetch(names) => {
            let all = names.is_empty();
            for tool in named(names)? {
                if all && tool.name == go::TOOL.name && machine::go().is_some() {
                    eprintln!("{}: the machine's own is new enough", tool.name);
                    continue;
                }
                let entry = cache.get(tool)?;
                eprintln!("{}: ready in {}", tool.name, entry.path().display());
            }
            Ok(())
        }
        ToolsCommand::Clear(names) => {
            named(names)?;
            for (name, size) in cache.clear(names)? {
                eprintln!("{name}: cleared, {} free again", disk::words(size));
            }
            Ok(())
        }
    }
}

/// What a shell has to know so that `cargo test` finds what is there.
fn environment(cache: &Cache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for tool in ALL {
        if let (Some(variable), Some(folder)) = (tool.variable, cache.find(tool)?) {
            writeln!(out, "export {variable}='{}'", folder.display())?;
        }
    }
    Ok(())
}

/// The tools of these names; all where there are none.
fn named(names: &[String]) -> Result<Vec<&'static Tool>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| ALL.into_iter().find(|tool| tool.name == name);
    names
        .iter()
        .map(|name| match find(name) {
            Some(tool) => Ok(tool),
            None => bail!("there is no tool {name:?}; there are: {}", ALL.map(|tool| tool.name).join(", ")),
        })
        .collect()
}

fn list(cache: &Cache) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "tool cache: {}\n", cache.root().display())?;
    writeln!(out, "{:<16} {:<14} {:>8}  {:<13} what for", "name", "key", "size", "state")?;
    for tool in ALL {
        for row in cache.rows(tool).with_context(|| format!("cannot look at the entries of {}", tool.name))? {
            let size = row.size.map(disk::words).unwrap_or_default();
            writeln!(out, "{:<16} {:<14} {size:>8}  {:<13} {}", tool.name, row.key, row.state.words(), tool.purpose)?;
        }
    }
    writeln!(out, "\nAn old version is one that this checkout does not use; another checkout may.")?;
    Ok(())
}
