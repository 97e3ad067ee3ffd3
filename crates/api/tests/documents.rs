//! `docs/rollout.md` lists exactly the condition types and reasons of Rollouts, `docs/operator.md` those of rewrites.

use std::collections::BTreeSet;

const CONDITION_SOURCE: &str = include_str!("../src/condition.rs");
const ROLLOUT_DOC: &str = include_str!("../../../docs/rollout.md");

#[test]
fn documented_rollout_conditions_match_the_constants() {
    let constants: BTreeSet<&str> =
        CONDITION_SOURCE.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1)).collect();
    let tables = ROLLOUT_DOC.split("## Status").nth(1).unwrap();
    let documented: BTreeSet<&str> =
        tables.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(constants.len() > 30, "found too few constants: {constants:?}");
    assert_eq!(constants, documented);
}

const REWRITE_CONDITION_SOURCE: &str = include_str!("../src/rewrite/condition.rs");
const OPERATOR_DOC: &str = include_str!("../../../docs/operator.md");

#[test]
fn documented_rewrite_conditions_match_the_constants() {
    let constants: BTreeSet<&str> = REWRITE_CONDITION_SOURCE
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1))
        .collect();
    let table = OPERATOR_DOC.split("## Conditions of rewrites").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| condition"));
    let cells = rows.flat_map(|row| row.split('|').take(4).collect::<Vec<_>>());
    let documented: BTreeSet<&str> = cells.filter_map(|cell| cell.split('`').nth(1)).collect();
    assert!(constants.len() > 4, "found too few constants: {constants:?}");
    assert_eq!(constants, documented);
}
