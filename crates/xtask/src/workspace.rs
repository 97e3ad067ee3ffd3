//! The repository's folder, and cargo commands in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;

/// Returns the repository's root folder.
pub(crate) fn root() -> Result<PathBuf> {
    // Determined at run time, because clones may share a target folder.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask …` in the repository")?;
    let root = Path::new(&manifest).ancestors().nth(2).context("xtask is not in `crates/xtask` of a repository")?;
    Ok(root.to_owned())
}

/// Whether this run is one of CI, which sets `CI=true`.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// Returns a cargo command in the repository, using the cargo that runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()?);
    if is_ci() {
        // A build that is never repeated does not pay for being repeatable.
        command.env("CARGO_INCREMENTAL", "0");
    }
    // Variables that `cargo run` set for this package must not reach other packages.
    for (name, _) in std::env::vars_os() {
        let of_this_package =
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if of_this_package {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Programs of a build by name.
pub(crate) type Programs = BTreeMap<String, PathBuf>;

/// Whether a build also runs clippy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lints {
    /// Only rustc compiles, without clippy.
    Off,
    /// Clippy's driver compiles the workspace in place of rustc: one compilation yields programs and findings.
    On,
}

/// Result of a build.
#[derive(Debug, Default)]
pub(crate) struct Build {
    pub(crate) programs: Programs,
    /// Diagnostics of the compiler, and of clippy if enabled, about our crates, without duplicates.
    pub(crate) findings: BTreeSet<String>,
}

/// Builds programs of the workspace and shows cargo's progress. `arguments` select what is built and how.
pub(crate) fn build(arguments: &[&str]) -> Result<Programs> {
    build_with(Lints::Off, arguments).map(|build| build.programs)
}

/// Like [`build`], and also returns diagnostics. Only errors fail the build.
pub(crate) fn build_with(lints: Lints, arguments: &[&str]) -> Result<Build> {
    let colored = std::io::stderr().is_terminal();
    let format = if colored { "--message-format=json-diagnostic-rendered-ansi" } else { "--message-format=json" };
    let mut command = cargo(&["build", "--locked", format])?;
    lints.set(&mut command)?;
    let mut build = Build::default();
    let status = process::run_with_lines(command.args(arguments), |line| match message(line) {
        Some(Message::Program { name, path }) => drop(build.programs.insert(name, path)),
        // A library is compiled for itself and for its tests, with the same diagnostics.
        Some(Message::Finding(text)) if !build.findings.contains(&text) => {
            eprint!("{text}");
            build.findings.insert(text);
        }
        Some(Message::Finding(_)) | None => {}
    })?;
    if !status.success() {
        bail!("`cargo build {}` failed with {}", arguments.join(" "), process::describe_exit(status));
    }
    Ok(build)
}

impl Lints {
    /// Sets the environment of a cargo command for this setting. Artifacts of one setting are not up to date for the
    /// other, so tests must run with the setting that they were built with.
    pub(crate) fn set(self, command: &mut Command) -> Result<()> {
        if self == Self::On {
            command.env("RUSTC_WORKSPACE_WRAPPER", clippy_driver()?);
        }
        Ok(())
    }
}

/// Returns the path of clippy's compiler, from the toolchain that compiles everything else.
pub(crate) fn clippy_driver() -> Result<PathBuf> {
    let sysroot = process::capture(Command::new("rustc").args(["--print", "sysroot"]))?;
    let driver = Path::new(sysroot.trim()).join("bin/clippy-driver");
    if !driver.is_file() {
        bail!("the toolchain has no clippy: `rustup component add clippy`");
    }
    Ok(driver)
}

/// Returns the path of a program of a build.
pub(crate) fn find_program<'a>(programs: &'a Programs, name: &str) -> Result<&'a Path> {
    programs.get(name).map(PathBuf::as_path).with_context(|| format!("the build has no program {name}"))
}

/// The relevant content of one of cargo's JSON messages.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Program {
        name: String,
        path: PathBuf,
    },
    /// A diagnostic, rendered as the compiler prints it.
    Finding(String),
}

fn message(line: &str) -> Option<Message> {
    #[derive(Deserialize)]
    struct Line {
        executable: Option<PathBuf>,
        target: Option<Target>,
        message: Option<CompilerMessage>,
        profile: Option<Profile>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct CompilerMessage {
        rendered: Option<String>,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    // The tests of a program have the same name as the program.
    let executable = line.executable.filter(|_| !line.profile.is_some_and(|profile| profile.test));
    match (line.message, line.target, executable) {
        (Some(diagnostic), ..) => diagnostic.rendered.map(Message::Finding),
        (None, Some(target), Some(path)) => Some(Message::Program { name: target.name, path }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_contains_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().unwrap().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn programs_and_findings_are_parsed_from_cargo_messages() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"rollora"},"executable":"/t/debug/rollora"}"#;
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"serde"},"executable":null}"#;
        let finding = r#"{"reason":"compiler-message","target":{"kind":["lib"],"name":"rollora-api"},"message":{"rendered":"warning: unused\n","level":"warning"}}"#;
        let test = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"rollora"},"profile":{"test":true},"executable":"/t/debug/deps/rollora-1"}"#;
        let finished = r#"{"reason":"build-finished","success":true}"#;
        let program = Message::Program { name: "rollora".to_owned(), path: PathBuf::from("/t/debug/rollora") };
        assert_eq!(message(artifact), Some(program));
        assert_eq!(message(finding), Some(Message::Finding("warning: unused\n".to_owned())));
        for irrelevant in [library, test, finished, "not JSON"] {
            assert_eq!(message(irrelevant), None, "{irrelevant}");
        }
    }
}
