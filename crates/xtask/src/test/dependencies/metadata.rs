//! The parts of `cargo metadata` that the checks need.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// All packages, and the dependency graph after features are resolved.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    /// `None` for a local package.
    pub(super) source: Option<String>,
    pub(super) dependencies: Vec<DeclaredDependency>,
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

/// An entry of a `[dependencies]` section.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct DeclaredDependency {
    pub(super) name: String,
    /// `None` for a normal dependency, otherwise `dev` or `build`.
    kind: Option<String>,
    optional: bool,
    req: String,
    /// `None` for a local package.
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

impl DeclaredDependency {
    pub(super) fn is_wildcard(&self) -> bool {
        self.source.is_some() && self.req == "*"
    }
}

impl Package {
    pub(super) fn is_from_registry(&self) -> bool {
        self.source.as_deref() == Some(REGISTRY)
    }

    /// Returns whether a build with default features, and without tests, has this dependency.
    fn has_default_dependency(&self, dependency: &str) -> bool {
        self.dependencies.iter().any(|declared| {
            declared.name == dependency
                && declared.kind.as_deref() != Some("dev")
                && (!declared.optional || self.is_enabled_by_default(dependency))
        })
    }

    fn is_enabled_by_default(&self, dependency: &str) -> bool {
        let explicit = format!("dep:{dependency}");
        let mut seen = BTreeSet::new();
        let mut left = vec!["default"];
        while let Some(feature) = left.pop() {
            if feature == explicit || feature == dependency {
                return true;
            }
            if seen.insert(feature) {
                left.extend(self.features.get(feature).into_iter().flatten().map(String::as_str));
            }
        }
        false
    }
}

impl Metadata {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("cannot parse the output of `cargo metadata`")
    }

    /// Returns the packages of this workspace.
    pub(super) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Returns the packages of other projects.
    pub(super) fn external_packages(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !self.workspace_members.contains(&package.id))
    }

    pub(super) fn member(&self, name: &str) -> Option<&Package> {
        self.members().find(|package| package.name == name)
    }

    /// Returns all transitive dependencies of a package with its default features, each with the path to it.
    ///
    /// Optional dependencies of our packages are followed only if a default feature enables them. Other packages have
    /// the features of the whole workspace, so the result may contain a little more than a single package needs.
    pub(super) fn transitive_dependencies(&self, member: &Package) -> BTreeMap<&str, Vec<&str>> {
        let packages: BTreeMap<_, _> = self.packages.iter().map(|package| (package.id.as_str(), package)).collect();
        let nodes: BTreeMap<_, _> = self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let mut found = BTreeMap::new();
        let mut left = vec![(member.id.as_str(), Vec::new())];
        while let Some((id, path)) = left.pop() {
            let (Some(package), Some(node)) = (packages.get(id), nodes.get(id)) else { continue };
            for edge in &node.deps {
                let Some(dependency) = packages.get(edge.pkg.as_str()) else { continue };
                let ours = self.workspace_members.contains(id);
                let wanted = if ours { package.has_default_dependency(&dependency.name) } else { !edge.is_dev_only() };
                if wanted && !found.contains_key(dependency.name.as_str()) {
                    let mut path = path.clone();
                    path.push(dependency.name.as_str());
                    found.insert(dependency.name.as_str(), path.clone());
                    left.push((dependency.id.as_str(), path));
                }
            }
        }
        found
    }

    /// Returns the names of the packages that depend on a package.
    pub(super) fn dependents(&self, id: &str) -> BTreeSet<&str> {
        let names: BTreeMap<_, _> = self.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
        let nodes = self.resolve.nodes.iter().filter(|node| node.deps.iter().any(|edge| edge.pkg == id));
        nodes.filter_map(|node| names.get(&node.id).copied()).collect()
    }
}

impl Edge {
    fn is_dev_only(&self) -> bool {
        self.dep_kinds.iter().all(|kind| kind.kind.as_deref() == Some("dev"))
    }
}

#[cfg(test)]
impl Metadata {
    /// Builds a graph from pairs of a package and its dependencies. Our packages begin with `rollora-`, a name may end
    /// in `@version`, and a dependency in brackets is optional.
    pub(super) fn for_tests(crates: &[(&str, &[&str])]) -> Self {
        let bare = |name: &str| name.trim_matches(['[', ']']).to_owned();
        let mut ids: BTreeSet<String> = crates.iter().map(|(name, _)| bare(name)).collect();
        ids.extend(crates.iter().flat_map(|(_, dependencies)| dependencies.iter().map(|name| bare(name))));
        let below = |id: &str| crates.iter().find(|(name, _)| *name == id).map_or(&[][..], |(_, below)| below);
        let name = |id: &str| id.split('@').next().unwrap_or_default().to_owned();
        let declared = |dependency: &&str| DeclaredDependency {
            name: name(&bare(dependency)),
            kind: None,
            optional: dependency.starts_with('['),
            req: "^1".to_owned(),
            source: Some(REGISTRY.to_owned()),
        };
        let edge = |dependency: &&str| Edge { pkg: bare(dependency), dep_kinds: vec![EdgeKind { kind: None }] };
        Self {
            workspace_members: ids.iter().filter(|id| id.starts_with("rollora-")).cloned().collect(),
            resolve: Resolve {
                nodes: ids
                    .iter()
                    .map(|id| Node { id: id.clone(), deps: below(id).iter().map(edge).collect() })
                    .collect(),
            },
            packages: ids
                .iter()
                .map(|id| Package {
                    id: id.clone(),
                    name: name(id),
                    version: id.split('@').nth(1).unwrap_or("1.0.0").to_owned(),
                    license: Some("MIT".to_owned()),
                    source: (!id.starts_with("rollora-")).then(|| REGISTRY.to_owned()),
                    dependencies: below(id).iter().map(declared).collect(),
                    features: BTreeMap::new(),
                })
                .collect(),
        }
    }

    pub(super) fn package_mut(&mut self, name: &str) -> &mut Package {
        self.packages.iter_mut().find(|package| package.name == name).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitive_dependencies_come_with_their_paths() {
        let graph = Metadata::for_tests(&[
            ("rollora-plan", &["rollora-api"]),
            ("rollora-api", &["serde"]),
            ("serde", &["syn"]),
        ]);
        let below = graph.transitive_dependencies(graph.member("rollora-plan").unwrap());
        assert_eq!(below["syn"], ["rollora-api", "serde", "syn"]);
        assert_eq!(below.len(), 3);
    }

    #[test]
    fn optional_dependency_counts_if_enabled_by_default() {
        let mut graph = Metadata::for_tests(&[("rollora-api", &["serde", "[kube]"]), ("kube", &["tokio"])]);
        assert_eq!(graph.transitive_dependencies(graph.member("rollora-api").unwrap()).len(), 1);
        let features = &mut graph.package_mut("rollora-api").features;
        features.insert("default".to_owned(), vec!["cluster".to_owned()]);
        features.insert("cluster".to_owned(), vec!["dep:kube".to_owned()]);
        assert_eq!(graph.transitive_dependencies(graph.member("rollora-api").unwrap()).len(), 3);
    }

    #[test]
    fn output_of_cargo_metadata_is_parsed() {
        let json = r#"{"packages":[{"id":"a","name":"a","version":"1.0.0","license":null,"source":null,"features":{},"dependencies":
            [{"name":"b","kind":"dev","optional":false,"req":"^1","source":null}]}],"workspace_members":["a"],
            "resolve":{"nodes":[{"id":"a","deps":[{"pkg":"b","name":"b","dep_kinds":[{"kind":"dev","target":null}]}]}]}}"#;
        let metadata = Metadata::parse(json.as_bytes()).unwrap();
        assert_eq!(metadata.members().count(), 1);
        assert!(metadata.transitive_dependencies(metadata.member("a").unwrap()).is_empty());
    }
}
