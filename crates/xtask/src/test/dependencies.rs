//! What this project is built from: offline, from `cargo metadata` and `deny.toml`.
//!
//! `deny.toml` is the one place that says what is allowed: this check reads the same file as `cargo deny`, so that the
//! two cannot disagree. What `cargo deny` cannot express stands here: which of our crates may know which others, and
//! that the document names every direct dependency and nothing else. Advisories need the network and are left to
//! `cargo deny`; crates that are known to be unmaintained are among the banned ones.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Outcome;
use crate::process;
use crate::workspace::{cargo, root};

mod document;
mod layers;
mod licence;
mod metadata;
mod policy;

use metadata::Metadata;
use policy::Policy;

const TRIES: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(super) fn run() -> Outcome {
    let policy = match read_policy() {
        Ok(policy) => policy,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    if let Err(error) = fetch(&policy) {
        return Outcome::Skipped(format!("{error:#}"));
    }
    match findings(&policy) {
        Ok(found) if found.is_empty() => cargo_deny().into(),
        Ok(found) => {
            for line in &found {
                println!("{line}");
            }
            Outcome::Failed(format!("{} findings, see above", found.len()))
        }
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn read_policy() -> Result<Policy> {
    let text = std::fs::read_to_string(root()?.join("deny.toml")).context("cannot read deny.toml")?;
    Policy::parse(&text)
}

/// Brings every crate of the lock file to this machine, so that nothing after this asks the registry.
fn fetch(policy: &Policy) -> Result<()> {
    let targets = policy.targets().flat_map(|target| ["--target", target]);
    let arguments: Vec<_> = ["fetch", "--locked"].into_iter().chain(targets).collect();
    for attempt in 1.. {
        match process::run_ok(&mut cargo(&arguments)?) {
            Ok(()) => break,
            Err(error) if attempt == TRIES => return Err(error).context("the crates could not be fetched"),
            Err(error) => eprintln!("{error:#}; try {} of {TRIES}", attempt + 1),
        }
        process::pause(RETRY_AFTER * attempt)?;
    }
    Ok(())
}

/// Everything that is not as it should be, a line each.
fn findings(policy: &Policy) -> Result<Vec<String>> {
    let platforms = policy.targets().flat_map(|target| ["--filter-platform", target]);
    let arguments: Vec<_> = ["metadata", "--format-version=1", "--offline", "--locked", "--all-features"]
        .into_iter()
        .chain(platforms)
        .collect();
    let output = cargo(&arguments)?.output().context("cannot start cargo")?;
    if !output.status.success() {
        anyhow::bail!("`cargo {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata = Metadata::parse(&output.stdout)?;
    let document = std::fs::read_to_string(root()?.join(document::FILE)).unwrap_or_default();
    let mut found = policy.findings(&metadata);
    found.extend(layers::findings(&metadata));
    found.extend(document::findings(&document, &metadata));
    println!("{} crates looked at", metadata.packages.len());
    Ok(found)
}

/// The same file by its own program, where that is installed: it knows the advisories too.
fn cargo_deny() -> Result<()> {
    if process::output_of(cargo(&["deny", "--version"])?.current_dir(root()?)).is_none() {
        println!("cargo deny is not installed: advisories were not looked at");
        return Ok(());
    }
    process::run_ok(&mut cargo(&["deny", "--locked", "check"])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph as small as the cases want it: `crate -> what it depends on`.
    pub(super) fn graph(crates: &[(&str, &[&str])]) -> Metadata {
        Metadata::for_tests(crates)
    }

    #[test]
    fn the_projects_own_policy_is_understood_and_allows_one_tls_provider() {
        let policy = read_policy().unwrap();
        for name in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "serde_yaml", "backoff"] {
            let found = policy.findings(&graph(&[("rollora-local", &[name])]));
            assert!(found.iter().any(|line| line.contains(name)), "{name} is not banned: {found:?}");
        }
    }
}
