//! The parts of `deny.toml` that can be checked offline, and their findings in a graph.
//!
//! Unknown fields are rejected: they would define rules that this check ignores.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::license;
use super::metadata::{Metadata, Package};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    graph: GraphPolicy,
    /// Used only by `cargo deny`.
    #[serde(rename = "advisories")]
    _advisories: toml::Table,
    licenses: LicensePolicy,
    bans: BanPolicy,
    #[serde(rename = "sources")]
    _sources: SourcePolicy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GraphPolicy {
    targets: Vec<String>,
    /// Always true: this check reads the graph with all features, and `cargo deny` must do the same.
    #[serde(rename = "all-features")]
    _all_features: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LicensePolicy {
    allow: BTreeSet<String>,
    #[serde(rename = "include-dev")]
    _include_dev: bool,
    #[serde(rename = "unused-allowed-license")]
    _unused: LintLevel,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct BanPolicy {
    #[serde(rename = "multiple-versions")]
    _multiple_versions: LintLevel,
    #[serde(rename = "multiple-versions-include-dev")]
    _include_dev: bool,
    #[serde(rename = "wildcards")]
    _wildcards: LintLevel,
    /// Crates of the workspace depend on each other by path.
    #[serde(rename = "allow-wildcard-paths")]
    _allow_wildcard_paths: bool,
    deny: Vec<CrateRule>,
    skip: Vec<CrateRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SourcePolicy {
    #[serde(rename = "unknown-registry")]
    _unknown_registry: LintLevel,
    #[serde(rename = "unknown-git")]
    _unknown_git: LintLevel,
}

/// Severity of a finding; the project uses no warnings.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LintLevel {
    Deny,
}

/// A crate, as `name` or `name@version`, with the reason for the rule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrateRule {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

impl CrateRule {
    fn matches(&self, package: &Package) -> bool {
        match self.name.split_once('@') {
            Some((name, version)) => package.name == name && package.version == version,
            None => package.name == self.name,
        }
    }
}

impl Policy {
    pub(super) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("cannot parse deny.toml")
    }

    /// Returns the platforms whose dependencies are checked.
    pub(super) fn targets(&self) -> impl Iterator<Item = &str> {
        self.graph.targets.iter().map(String::as_str)
    }

    /// Returns everything that violates the policy, and every exception that is not needed.
    pub(super) fn findings(&self, metadata: &Metadata) -> Vec<String> {
        let mut found = self.license_findings(metadata);
        found.extend(self.ban_findings(metadata));
        found.extend(self.duplicate_findings(metadata));
        found.extend(source_findings(metadata));
        found
    }

    fn license_findings(&self, metadata: &Metadata) -> Vec<String> {
        let mut found = Vec::new();
        for package in &metadata.packages {
            let Package { name, version, .. } = package;
            match package.license.as_deref() {
                None => found.push(format!("{name} {version} does not declare its license")),
                Some(text) if !license::is_satisfied(text, &|licence| self.licenses.allow.contains(licence)) => {
                    found.push(format!("{name} {version} is licensed as {text}, which deny.toml does not allow"));
                }
                Some(_) => {}
            }
        }
        let texts: Vec<_> = metadata.packages.iter().filter_map(|package| package.license.as_deref()).collect();
        for licence in &self.licenses.allow {
            if !texts.iter().any(|text| text.contains(licence.as_str())) {
                found.push(format!("deny.toml allows the license {licence}, which no crate uses: remove it"));
            }
        }
        found
    }

    fn ban_findings(&self, metadata: &Metadata) -> Vec<String> {
        let mut found = Vec::new();
        for package in metadata.external_packages() {
            for ban in self.bans.deny.iter().filter(|ban| ban.matches(package)) {
                let parents: Vec<_> = metadata.dependents(&package.id).into_iter().collect();
                found.push(format!("{} is banned (from {}): {}", package.name, parents.join(", "), ban.reason));
            }
        }
        found
    }

    fn duplicate_findings(&self, metadata: &Metadata) -> Vec<String> {
        let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
        for package in metadata.external_packages() {
            versions.entry(&package.name).or_default().push(package);
        }
        let mut found = Vec::new();
        for skip in &self.bans.skip {
            let doubled = versions.values().filter(|packages| packages.len() > 1);
            if !doubled.flatten().any(|package| skip.matches(package)) {
                found.push(format!("deny.toml allows duplicates of {}, which has none: remove it", skip.name));
            }
        }
        for (name, packages) in versions {
            let counted: Vec<_> = packages
                .into_iter()
                .filter(|package| !self.bans.skip.iter().any(|skip| skip.matches(package)))
                .collect();
            if counted.len() > 1 {
                let list = counted.iter().map(|package| {
                    let parents: Vec<_> = metadata.dependents(&package.id).into_iter().collect();
                    format!("{} (from {})", package.version, parents.join(", "))
                });
                found.push(format!(
                    "{name} has {} versions in the graph: {}",
                    counted.len(),
                    list.collect::<Vec<_>>().join(" and ")
                ));
            }
        }
        found
    }
}

/// Returns dependencies that are not from the crates registry, or that allow any version.
fn source_findings(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for package in metadata.external_packages().filter(|package| !package.is_from_registry()) {
        let from = package.source.as_deref().unwrap_or("a folder outside of the workspace");
        found.push(format!("{} {} comes from {from}, not from the crates registry", package.name, package.version));
    }
    for member in metadata.members() {
        for declared in member.dependencies.iter().filter(|declared| declared.is_wildcard()) {
            found.push(format!("{} depends on any version of {}", member.name, declared.name));
        }
    }
    found
}

#[cfg(test)]
mod tests;
