//! Layering rules: which of our crates may depend on which others, checked on the graph.

use super::metadata::{Metadata, Package};

/// A rule for some of our crates, with their default features and all transitive dependencies.
struct LayerRule {
    crates: &'static [&'static str],
    /// Crate names, or prefixes that end in `*`.
    forbidden: &'static [&'static str],
    reason: &'static str,
}

const RULES: &[LayerRule] = &[
    LayerRule {
        crates: &["rollora-api", "rollora-plan", "rollora-router"],
        forbidden: &[
            "kube",
            "kube-*",
            "k8s-openapi",
            "tokio",
            "tokio-*",
            "hyper",
            "hyper-*",
            "axum",
            "reqwest",
            "mio",
            "notify",
        ],
        reason: "decision code is a pure function of plain data: no cluster, runtime, network or file watch",
    },
    LayerRule {
        crates: &["rollora-vllm", "rollora-adapter-source", "rollora-sidecar", "rollora-operator", "rollora-local"],
        forbidden: &["kube", "kube-*", "k8s-openapi"],
        reason: "running on one machine needs no Kubernetes",
    },
];

/// Crates that may depend on kube, even behind a feature: all others use the types of `rollora-cluster`.
const MAY_NAME_KUBE: &[&str] = &["rollora-api", "rollora-cluster", "rollora-e2e", "rollora-testbed"];

/// Returns each forbidden dependency, with the path to it.
pub(super) fn findings(metadata: &Metadata) -> Vec<String> {
    let mut found = kube_findings(metadata);
    for rule in RULES {
        for member in rule.crates.iter().filter_map(|name| metadata.member(name)) {
            for (name, path) in metadata.transitive_dependencies(member) {
                if rule.forbidden.iter().any(|pattern| matches_pattern(pattern, name)) {
                    let path = path.join(" -> ");
                    found.push(format!("{} must not depend on {name} ({path}): {}", member.name, rule.reason));
                }
            }
        }
    }
    found
}

fn kube_findings(metadata: &Metadata) -> Vec<String> {
    let others = metadata.members().filter(|member| !MAY_NAME_KUBE.contains(&member.name.as_str()));
    let named = others.flat_map(|member| member.dependencies.iter().map(move |declared| (member, &declared.name)));
    let kube = named
        .filter(|(_, name)| ["kube", "kube-*", "k8s-openapi"].iter().any(|pattern| matches_pattern(pattern, name)));
    let words = |(member, name): (&Package, &String)| {
        format!("{} must not depend on {name}: use rollora-cluster instead", member.name)
    };
    kube.map(words).collect()
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::super::tests::graph;
    use super::*;

    #[test]
    fn pure_crate_with_a_runtime_is_found_with_the_path() {
        let found =
            findings(&graph(&[("rollora-plan", &["rollora-api"]), ("rollora-api", &["left"]), ("left", &["tokio"])]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.iter().any(|line| {
                line.starts_with("rollora-plan must not depend on tokio (rollora-api -> left -> tokio)")
            })
        );
    }

    #[test]
    fn kube_behind_an_optional_feature_is_allowed() {
        assert!(findings(&graph(&[("rollora-api", &["serde", "[kube]"])])).is_empty());
    }

    #[test]
    fn only_the_cluster_crate_depends_on_kube() {
        let found = findings(&graph(&[
            ("rollora-ext-proc", &["rollora-cluster", "[k8s-openapi]"]),
            ("rollora-cluster", &["kube"]),
            ("kube", &["tokio"]),
        ]));
        assert_eq!(found, ["rollora-ext-proc must not depend on k8s-openapi: use rollora-cluster instead"]);
    }

    #[test]
    fn local_crate_may_use_a_runtime_but_not_kube() {
        let graph = graph(&[("rollora-local", &["tokio", "rollora-cluster"]), ("rollora-cluster", &["kube-client"])]);
        let found = findings(&graph);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("rollora-local must not depend on kube-client (rollora-cluster -> kube-client)"));
    }

    #[test]
    fn crates_of_all_rules_exist() {
        let root = crate::workspace::root().unwrap();
        for name in RULES.iter().flat_map(|rule| rule.crates).chain(MAY_NAME_KUBE) {
            let folder = name.trim_start_matches("rollora-");
            assert!(root.join("crates").join(folder).is_dir() || root.join(folder).is_dir(), "{name}");
        }
    }
}
