//! `docs/rollout.md` names every reason and every type of condition, and no others.

use std::collections::BTreeSet;

const SOURCE: &str = include_str!("../src/condition.rs");
const DOCUMENT: &str = include_str!("../../../docs/rollout.md");

#[test]
fn every_condition_and_reason_is_documented_and_no_other() {
    let constants: BTreeSet<&str> =
        SOURCE.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1)).collect();
    let tables = DOCUMENT.split("## Status").nth(1).unwrap();
    let documented: BTreeSet<&str> =
        tables.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(constants.len() > 30, "the constants were not found: {constants:?}");
    assert_eq!(constants, documented);
}
