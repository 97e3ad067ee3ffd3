//! Checks the project's dependencies offline, from `cargo metadata` and `deny.toml`.
//!
//! `deny.toml` alone says what is allowed: this check reads the same file as `cargo deny`, so that the two cannot
//! disagree. This module adds what `cargo deny` cannot express: which of our crates may depend on which others, and
//! that `docs/dependencies.md` names exactly the direct dependencies. Advisories need the network and are left to
//! `cargo deny`; crates that are known to be unmaintained are among the banned ones.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::CheckOutcome;
use crate::process;
use crate::workspace::{cargo, root};

mod document;
mod layers;
mod license;
mod metadata;
mod policy;

use metadata::Metadata;
use policy::Policy;

const MAX_ATTEMPTS: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(super) fn run() -> CheckOutcome {
    match check_offline().and_then(|()| run_cargo_deny()) {
        Ok(()) => CheckOutcome::Passed,
        Err(error) if error.is::<FetchFailed>() => CheckOutcome::Skipped(format!("{error:#}")),
        Err(error) => CheckOutcome::Failed(format!("{error:#}")),
    }
}

fn check_offline() -> Result<()> {
    let policy = read_policy()?;
    // In offline mode, cargo needs every crate of the lock file on this machine.
    let metadata = read_metadata(&policy).or_else(|_| fetch_crates(&policy).and_then(|()| read_metadata(&policy)))?;
    let document = std::fs::read_to_string(root()?.join(document::DOCUMENT_PATH)).unwrap_or_default();
    println!("checked {} crates", metadata.packages.len());
    let mut found = policy.findings(&metadata);
    found.extend(layers::findings(&metadata));
    found.extend(document::findings(&document, &metadata));
    for line in &found {
        println!("{line}");
    }
    if found.is_empty() { Ok(()) } else { bail!("{} findings, see above", found.len()) }
}

/// Something could not be fetched from the network.
#[derive(Debug)]
struct FetchFailed {
    subject: &'static str,
    detail: String,
}

impl fmt::Display for FetchFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot fetch {}: {}", self.subject, self.detail)
    }
}

impl std::error::Error for FetchFailed {}

fn read_policy() -> Result<Policy> {
    let text = std::fs::read_to_string(root()?.join("deny.toml")).context("cannot read deny.toml")?;
    Policy::parse(&text)
}

/// Fetches every crate of the lock file, so that later parts do not use the registry.
fn fetch_crates(policy: &Policy) -> Result<()> {
    eprintln!("fetching the crates of the lock file");
    let targets = policy.targets().flat_map(|target| ["--target", target]);
    let arguments: Vec<_> = ["fetch", "--locked"].into_iter().chain(targets).collect();
    run_with_retries("the crates", &arguments, |words| !words.contains("--locked was passed"))
}

/// Runs a quiet cargo command, and retries it while its output shows that the network failed.
fn run_with_retries(what: &'static str, arguments: &[&str], is_network: impl Fn(&str) -> bool) -> Result<()> {
    for attempt in 1.. {
        let Err(words) = cargo_output(arguments)? else { break };
        if !is_network(&words) {
            bail!("`cargo {}` failed: {words}", arguments.join(" "));
        }
        if attempt == MAX_ATTEMPTS {
            return Err(FetchFailed { subject: what, detail: words }.into());
        }
        eprintln!("{words}; attempt {} of {MAX_ATTEMPTS}", attempt + 1);
        process::interruptible_sleep(RETRY_AFTER * attempt)?;
    }
    Ok(())
}

fn read_metadata(policy: &Policy) -> Result<Metadata> {
    let platforms = policy.targets().flat_map(|target| ["--filter-platform", target]);
    let arguments: Vec<_> = ["metadata", "--format-version=1", "--offline", "--locked", "--all-features"]
        .into_iter()
        .chain(platforms)
        .collect();
    match cargo_output(&arguments)? {
        Ok(json) => Metadata::parse(&json),
        Err(words) => bail!("`cargo metadata` failed: {words}"),
    }
}

/// Runs a cargo command without showing its output: returns standard output, or standard error if it fails.
fn cargo_output(arguments: &[&str]) -> Result<Result<Vec<u8>, String>> {
    process::fail_if_interrupted()?;
    let output = cargo(arguments)?.output().context("cannot start cargo")?;
    process::fail_if_interrupted()?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { Ok(output.stdout) } else { Err(words) })
}

/// Runs `cargo deny` with the same file, if it is installed: it also checks advisories.
fn run_cargo_deny() -> Result<()> {
    if process::output_of(cargo(&["deny", "--version"])?.current_dir(root()?)).is_none() {
        println!("cargo deny is not installed: advisories are not checked");
        return Ok(());
    }
    process::run_ok(&mut cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"])?)?;
    let advisories = ["deny", "--locked", "check", "advisories"];
    run_with_retries("the advisories", &advisories, |words| words.contains("failed to fetch advisory database"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a small graph from pairs of a crate and its dependencies.
    pub(super) fn graph(crates: &[(&str, &[&str])]) -> Metadata {
        Metadata::for_tests(crates)
    }

    #[test]
    fn deny_toml_is_parsed_and_allows_only_one_tls_provider() {
        let policy = read_policy().unwrap();
        for name in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "serde_yaml", "backoff"] {
            let found = policy.findings(&graph(&[("rollora-local", &[name])]));
            assert!(found.iter().any(|line| line.contains(name)), "{name} is not banned: {found:?}");
        }
    }
}
