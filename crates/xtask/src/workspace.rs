//! Where the repository is, and cargo in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;

/// The repository's folder.
pub(crate) fn root() -> Result<PathBuf> {
    // Read at run time: a target folder may be shared by several clones.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask …`, from the repository")?;
    let root = Path::new(&manifest).ancestors().nth(2).context("xtask is not in crates/xtask of a repository")?;
    Ok(root.to_owned())
}

/// A command of the cargo that runs this program, in the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()?);
    // What `cargo run` told this program about itself is not meant for others.
    for (name, _) in std::env::vars_os() {
        let of_this_package =
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if of_this_package {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// The programs of a build, by name.
pub(crate) type Programs = BTreeMap<String, PathBuf>;

/// Builds programs of the workspace with cargo's own progress in sight. `arguments` say which and how.
pub(crate) fn build(arguments: &[&str]) -> Result<Programs> {
    let mut command = cargo(&["build", "--locked", "--message-format=json-render-diagnostics"])?;
    let mut programs = Programs::new();
    let status = process::lines(command.args(arguments), |line| programs.extend(program(line)))?;
    if !status.success() {
        bail!("`cargo build {}` ended with {}", arguments.join(" "), process::ending(status));
    }
    Ok(programs)
}

/// A program of a build by its name.
pub(crate) fn find<'a>(programs: &'a Programs, name: &str) -> Result<&'a Path> {
    programs.get(name).map(PathBuf::as_path).with_context(|| format!("cargo built no program called {name}"))
}

/// The program that a line of cargo's JSON messages tells of, if it tells of one.
fn program(line: &str) -> Option<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    Some((message.target?.name, message.executable?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().unwrap().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"rollora"},"executable":"/t/debug/rollora"}"#;
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"serde"},"executable":null}"#;
        let finished = r#"{"reason":"build-finished","success":true}"#;
        assert_eq!(program(artifact), Some(("rollora".to_owned(), PathBuf::from("/t/debug/rollora"))));
        assert_eq!(program(library), None);
        assert_eq!(program(finished), None);
        assert_eq!(program("not JSON"), None);
    }
}
