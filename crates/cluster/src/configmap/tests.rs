//! The watch of one ConfigMap.

use super::*;

#[test]
fn versions_are_compared_as_numbers_and_say_nothing_where_they_are_none() {
    for (version, seen, older) in [
        (Some(9), Some(10), true),
        (Some(10), Some(10), false),
        (Some(11), Some(10), false),
        (None, Some(10), false),
        (Some(9), None, false),
    ] {
        assert_eq!(is_older(version, seen), older, "{version:?} {seen:?}");
    }
}
