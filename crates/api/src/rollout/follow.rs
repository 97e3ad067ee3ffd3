//! Resolution of `spec.adapter.follow`: finds the highest of the listed ids.
//!
//! Versions are compared number by number, separated by dots, with numbers of any length: `v2` is lower than `v10`, and
//! `1.2` lower than `1.2.0`. Ids that differ only in leading zeros (`v2`, `v02`) are ordered by their text. The order
//! is therefore total, and every operator finds the same id, whatever the order of the file.

use super::spec::VersionOrder;
use crate::names::AdapterId;
use std::cmp::Ordering;

/// Result of resolving a pattern.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Highest matching id; `None` if no id matches the pattern with a valid version.
    pub id: Option<AdapterId>,
    /// Ids that match the pattern but whose version is not made of digits and dots, in the given order.
    pub ignored: Vec<AdapterId>,
}

/// Finds the highest of the `ids` that match `pattern`, in which exactly one `*` stands for the version.
pub fn highest_version<'a>(
    pattern: &str,
    order: VersionOrder,
    ids: impl IntoIterator<Item = &'a AdapterId>,
) -> Resolution {
    let VersionOrder::Numeric = order;
    let Some((before, after)) = pattern.split_once('*') else { return Resolution::default() };
    let mut best: Option<(NumericVersion<'_>, &AdapterId)> = None;
    let mut ignored = Vec::new();
    for id in ids {
        let text = id.as_str().strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        match text.map(NumericVersion::parse) {
            Some(None) => ignored.push(id.clone()),
            Some(Some(version)) if best.as_ref().is_none_or(|(highest, _)| version > *highest) => {
                best = Some((version, id));
            }
            // The id does not match the pattern, or its version is lower.
            None | Some(Some(_)) => {}
        }
    }
    Resolution { id: best.map(|(_, id)| id.clone()), ignored }
}

/// A version made of digits and dots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NumericVersion<'a> {
    text: &'a str,
}

impl<'a> NumericVersion<'a> {
    /// Parses one or more numbers with single dots between them.
    fn parse(text: &'a str) -> Option<Self> {
        let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        text.split('.').all(number).then_some(Self { text })
    }

    /// Returns the numbers without leading zeros, each after its length: compared like this, their length is unlimited.
    fn numbers(&self) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        self.text.split('.').map(|part| {
            let digits = part.trim_start_matches('0');
            (digits.len(), digits)
        })
    }
}

impl Ord for NumericVersion<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers().cmp(other.numbers()).then_with(|| self.text.cmp(other.text))
    }
}

impl PartialOrd for NumericVersion<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(names: &[&str]) -> Vec<AdapterId> {
        names.iter().map(|name| AdapterId::new(*name).unwrap()).collect()
    }

    fn resolve_ids(pattern: &str, names: &[&str]) -> (Option<String>, Vec<String>) {
        let resolution = highest_version(pattern, VersionOrder::Numeric, &ids(names));
        let ignored = resolution.ignored.into_iter().map(String::from).collect();
        (resolution.id.map(String::from), ignored)
    }

    #[test]
    fn highest_number_wins() {
        let cases: &[(&str, &[&str], Option<&str>)] = &[
            ("a-v*", &["a-v1", "a-v2"], Some("a-v2")),
            ("a-v*", &["a-v10", "a-v2", "a-v9"], Some("a-v10")),
            ("a-v*", &["a-v1.2", "a-v1.2.0"], Some("a-v1.2.0")),
            ("a-v*", &["a-v1.10", "a-v1.9.9"], Some("a-v1.10")),
            ("a-v*", &["a-v2", "a-v02"], Some("a-v2")),
            ("a-v*", &["a-v99999999999999999999998", "a-v99999999999999999999999"], Some("a-v99999999999999999999999")),
            ("a-v*", &["a-v0", "a-v00"], Some("a-v00")),
            ("*-a", &["1-a", "2-a", "3-b"], Some("2-a")),
            ("a*", &["b1"], None),
            ("a*", &[], None),
            ("no star", &["no star"], None),
        ];
        for (pattern, names, expected) in cases {
            assert_eq!(resolve_ids(pattern, names).0.as_deref(), *expected, "{pattern} {names:?}");
        }
    }

    #[test]
    fn matching_ids_without_a_valid_version_are_reported() {
        let names = ["a-v1", "a-vnext", "b-v7", "a-v", "a-v1.", "a-v1..2", "a-v2-rc1", "a-v٣"];
        let (id, ignored) = resolve_ids("a-v*", &names);
        assert_eq!(id.as_deref(), Some("a-v1"));
        assert_eq!(ignored, ["a-vnext", "a-v", "a-v1.", "a-v1..2", "a-v2-rc1", "a-v٣"]);
    }

    proptest! {
        #[test]
        fn file_order_does_not_matter(
            mut versions in prop::collection::hash_set("[0-9]{1,3}(\\.[0-9]{1,3}){0,2}", 1..8)
                .prop_map(|set| set.into_iter().map(|version| format!("a-v{version}")).collect::<Vec<_>>())
        ) {
            let resolve = |names: &[String]| {
                highest_version("a-v*", VersionOrder::Numeric, &names.iter().map(|n| AdapterId::new(n).unwrap()).collect::<Vec<_>>())
            };
            let one = resolve(&versions);
            versions.reverse();
            prop_assert_eq!(&resolve(&versions), &one);
            versions.sort();
            prop_assert_eq!(resolve(&versions), one);
        }

        #[test]
        fn versions_compare_numerically(left in any::<u64>(), right in any::<u64>()) {
            let (one, two) = (left.to_string(), right.to_string());
            prop_assert_eq!(NumericVersion::parse(&one).unwrap().cmp(&NumericVersion::parse(&two).unwrap()), left.cmp(&right));
        }
    }
}
