//! Checks that `docs/dependencies.md` names exactly the direct dependencies.

use std::collections::BTreeSet;

use super::metadata::Metadata;

pub(super) const DOCUMENT_PATH: &str = "docs/dependencies.md";

/// Returns the dependencies that the document lacks, and the crates that it names without need.
pub(super) fn findings(document: &str, metadata: &Metadata) -> Vec<String> {
    let named = documented_crates(document);
    let ours: BTreeSet<_> = metadata.members().map(|member| member.name.as_str()).collect();
    let direct: BTreeSet<_> = metadata
        .members()
        .flat_map(|member| member.dependencies.iter().map(|declared| declared.name.as_str()))
        .filter(|name| !ours.contains(name))
        .collect();
    let lacking = direct.difference(&named).map(|name| format!("{DOCUMENT_PATH} does not say what {name} is for"));
    let idle = named
        .difference(&direct)
        .map(|name| format!("{DOCUMENT_PATH} names {name}, which no crate of ours depends on"));
    lacking.chain(idle).collect()
}

/// Returns the names in the first column of the document's tables, each in backticks.
fn documented_crates(document: &str) -> BTreeSet<&str> {
    let cells = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    // When split at backticks, the pieces with even indexes were enclosed in them, because the cell begins inside of a
    // pair.
    cells.flat_map(|cell| cell.split('`').step_by(2)).map(str::trim).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::graph;
    use super::*;

    const DOCUMENT: &str = "Not `this`.\n\n| crate | for |\n|---|---|\n| `serde`, `serde_json` | JSON, not `yaml` |\n";

    #[test]
    fn crates_are_read_from_the_first_column() {
        assert_eq!(documented_crates(DOCUMENT), BTreeSet::from(["serde", "serde_json"]));
    }

    #[test]
    fn missing_and_superfluous_crates_are_found() {
        let graph = graph(&[("rollora-plan", &["rollora-api", "jiff"]), ("rollora-api", &["serde"])]);
        assert_eq!(
            findings(DOCUMENT, &graph),
            [
                "docs/dependencies.md does not say what jiff is for",
                "docs/dependencies.md names serde_json, which no crate of ours depends on",
            ]
        );
    }
}
