//! Tests of the version comparison.

use super::*;

#[test]
fn only_numeric_versions_are_compared() {
    for (version, known, older) in [
        (Some(9), Some(10), true),
        (Some(10), Some(10), false),
        (Some(11), Some(10), false),
        (None, Some(10), false),
        (Some(9), None, false),
    ] {
        assert_eq!(is_older(version, known), older, "{version:?} {known:?}");
    }
}
