//! Which of our crates may know what: the design's rules about who decides and who does, read from the graph.

use super::metadata::{Metadata, Package};

/// A rule about a crate of ours, with its default features, and everything below it.
struct LayerRule {
    crates: &'static [&'static str],
    /// Names, or beginnings of names that end in `*`.
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
        reason: "what decides is a plain function of plain data: no cluster, runtime, network or file watch",
    },
    LayerRule {
        crates: &["rollora-vllm", "rollora-adapter-source", "rollora-sidecar", "rollora-operator", "rollora-local"],
        forbidden: &["kube", "kube-*", "k8s-openapi"],
        reason: "one machine needs no Kubernetes",
    },
];

/// Who may name kube, behind whatever feature: the rest speaks of a cluster in the words of `rollora-cluster`.
const MAY_NAME_KUBE: &[&str] = &["rollora-api", "rollora-cluster", "rollora-e2e", "rollora-testbed"];

/// Every crate that knows what it must not know, with the path there.
pub(super) fn findings(metadata: &Metadata) -> Vec<String> {
    let mut found = kube_findings(metadata);
    for rule in RULES {
        for member in rule.crates.iter().filter_map(|name| metadata.member(name)) {
            for (name, path) in metadata.transitive_dependencies(member) {
                if rule.forbidden.iter().any(|pattern| matches_pattern(pattern, name)) {
                    let path = path.join(" -> ");
                    found.push(format!("{} must not know {name} ({path}): {}", member.name, rule.reason));
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
        format!("{} must not name {name}: that is rollora-cluster's part", member.name)
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
    fn a_pure_crate_that_reaches_a_runtime_is_found_with_the_path() {
        let found =
            findings(&graph(&[("rollora-plan", &["rollora-api"]), ("rollora-api", &["left"]), ("left", &["tokio"])]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found
                .iter()
                .any(|line| { line.starts_with("rollora-plan must not know tokio (rollora-api -> left -> tokio)") })
        );
    }

    #[test]
    fn kube_behind_a_feature_is_none_of_the_default_features() {
        assert!(findings(&graph(&[("rollora-api", &["serde", "[kube]"])])).is_empty());
    }

    #[test]
    fn only_the_crate_of_the_cluster_names_kube() {
        let found = findings(&graph(&[
            ("rollora-ext-proc", &["rollora-cluster", "[k8s-openapi]"]),
            ("rollora-cluster", &["kube"]),
            ("kube", &["tokio"]),
        ]));
        assert_eq!(found, ["rollora-ext-proc must not name k8s-openapi: that is rollora-cluster's part"]);
    }

    #[test]
    fn one_machine_may_know_a_runtime_but_no_kube() {
        let graph = graph(&[("rollora-local", &["tokio", "rollora-cluster"]), ("rollora-cluster", &["kube-client"])]);
        let found = findings(&graph);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("rollora-local must not know kube-client (rollora-cluster -> kube-client)"));
    }

    #[test]
    fn every_rule_is_about_crates_that_exist() {
        let root = crate::workspace::root().unwrap();
        for name in RULES.iter().flat_map(|rule| rule.crates).chain(MAY_NAME_KUBE) {
            let folder = name.trim_start_matches("rollora-");
            assert!(root.join("crates").join(folder).is_dir() || root.join(folder).is_dir(), "{name}");
        }
    }
}
