//! `docs/rollout.md` names every reason and every type of condition, and no others; `docs/operator.md` those of rewrites.

use std::collections::BTreeSet;

const CONDITION_SOURCE: &str = include_str!("../src/condition.rs");
const ROLLOUT_DOC: &str = include_str!("../../../docs/rollout.md");

#[test]
fn every_condition_and_reason_is_documented_and_no_other() {
    let constants: BTreeSet<&str> =
        CONDITION_SOURCE.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1)).collect();
    let tables = ROLLOUT_DOC.split("## Status").nth(1).unwrap();
    let documented: BTreeSet<&str> =
        tables.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(constants.len() > 30, "the constants were not found: {constants:?}");
    assert_eq!(constants, documented);
}

const REWRITE_CONDITION_SOURCE: &str = include_str!("../src/rewrite/condition.rs");
const OPERATOR_DOC: &str = include_str!("../../../docs/operator.md");

#[test]
fn every_condition_and_reason_of_rewrites_is_documented_and_no_other() {
    let constants: BTreeSet<&str> = REWRITE_CONDITION_SOURCE
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1))
        .collect();
    let table = OPERATOR_DOC.split("## Conditions of rewrites").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| condition"));
    let cells = rows.flat_map(|row| row.split('|').take(4).collect::<Vec<_>>());
    let documented: BTreeSet<&str> = cells.filter_map(|cell| cell.split('`').nth(1)).collect();
    assert!(constants.len() > 4, "the constants were not found: {constants:?}");
    assert_eq!(constants, documented);
}
