use super::super::tests::graph;
use super::*;

fn policy(licences: &str, deny: &str, skip: &str) -> Policy {
    let text = format!(
        r#"
        [graph]
        targets = ["x86_64-unknown-linux-gnu"]
        all-features = true
        [advisories]
        [licenses]
        allow = [{licences}]
        include-dev = true
        unused-allowed-license = "deny"
        [bans]
        multiple-versions = "deny"
        multiple-versions-include-dev = true
        wildcards = "deny"
        allow-wildcard-paths = true
        deny = [{deny}]
        skip = [{skip}]
        [sources]
        unknown-registry = "deny"
        unknown-git = "deny"
        "#
    );
    Policy::parse(&text).unwrap()
}

#[test]
fn clean_graph_has_no_findings() {
    assert_eq!(policy("'MIT'", "", "").findings(&graph(&[("rollora-api", &["serde"])])), [""; 0]);
}

#[test]
fn disallowed_and_missing_licenses_are_found() {
    let mut graph = graph(&[("rollora-api", &["left", "right"])]);
    graph.package_mut("left").license = Some("GPL-3.0-only".to_owned());
    graph.package_mut("right").license = None;
    assert_eq!(
        policy("'MIT'", "", "").findings(&graph),
        [
            "left 1.0.0 is licensed as GPL-3.0-only, which deny.toml does not allow",
            "right 1.0.0 does not declare its license",
        ]
    );
}

#[test]
fn unused_allowed_license_is_found() {
    let found = policy("'MIT', 'ISC'", "", "").findings(&graph(&[("rollora-api", &["serde"])]));
    assert_eq!(found, ["deny.toml allows the license ISC, which no crate uses: remove it"]);
}

#[test]
fn banned_crate_is_found_with_dependents_and_reason() {
    let policy = policy("'MIT'", "{ crate = 'openssl', reason = 'TLS is rustls' }", "");
    let found = policy.findings(&graph(&[("rollora-vllm", &["reqwest"]), ("reqwest", &["openssl"])]));
    assert_eq!(found, ["openssl is banned (from reqwest): TLS is rustls"]);
}

#[test]
fn duplicate_crate_is_found_unless_one_version_is_skipped() {
    let doubled = graph(&[("rollora-api", &["left", "rand@0.9.0"]), ("left", &["rand@0.10.0"])]);
    assert_eq!(
        policy("'MIT'", "", "").findings(&doubled),
        ["rand has 2 versions in the graph: 0.10.0 (from left) and 0.9.0 (from rollora-api)"]
    );
    assert_eq!(policy("'MIT'", "", "{ crate = 'rand@0.9.0', reason = 'left is ahead' }").findings(&doubled), [""; 0]);
}

#[test]
fn unused_skip_is_found() {
    let policy = policy("'MIT'", "", "{ crate = 'rand@0.9.0', reason = 'left is ahead' }");
    let found = policy.findings(&graph(&[("rollora-api", &["rand@0.9.0"])]));
    assert_eq!(found, ["deny.toml allows duplicates of rand@0.9.0, which has none: remove it"]);
}

#[test]
fn unknown_field_is_rejected() {
    let error = Policy::parse("[graph]\ntargets = []\nall-features = true\nfuture = 1\n").unwrap_err();
    assert!(format!("{error:#}").contains("unknown field `future`"), "{error:#}");
}

#[test]
fn crate_from_outside_the_registry_is_found() {
    let mut graph = graph(&[("rollora-api", &["left", "right"])]);
    graph.package_mut("left").source = Some("git+https://example.com/left".to_owned());
    graph.package_mut("right").source = None;
    assert_eq!(
        policy("'MIT'", "", "").findings(&graph),
        [
            "left 1.0.0 comes from git+https://example.com/left, not from the crates registry",
            "right 1.0.0 comes from a folder outside of the workspace, not from the crates registry",
        ]
    );
}
