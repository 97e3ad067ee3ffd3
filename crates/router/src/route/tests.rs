use super::*;
use crate::fixtures::{rewrite, rule, rule_set};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DRAWS: u32 = 20_000;

/// Returns how often each target of a rule with these weights is selected.
fn counts(weights: &[(&str, i32)]) -> Vec<u32> {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], weights)])]);
    let rule = rules.find(Some("m")).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut counts = vec![0; weights.len()];
    for _ in 0..DRAWS {
        let selected = select_target(rule, None, random.random()).unwrap();
        counts[weights.iter().position(|(name, _)| *name == &**selected.name()).unwrap()] += 1;
    }
    counts
}

/// Returns Pearson's chi-squared statistic of the counts against the expected shares.
pub(super) fn chi_square(counts: &[u32], shares: &[f64]) -> f64 {
    let (draws, sum): (f64, f64) = (counts.iter().map(|count| f64::from(*count)).sum(), shares.iter().sum());
    let expected = shares.iter().map(|share| draws * share / sum);
    counts.iter().zip(expected).map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected).sum()
}

#[test]
fn targets_are_selected_by_weight() {
    // Random counts exceed 16.3 (three degrees of freedom) or 13.8 (two) once in a thousand runs; the seed is fixed.
    assert!(chi_square(&counts(&[("a", 0), ("b", 0), ("c", 0), ("d", 0)]), &[1.0; 4]) < 16.3);
    assert!(chi_square(&counts(&[("a", 70), ("b", 20), ("c", 10)]), &[7.0, 2.0, 1.0]) < 13.8);
    assert!(chi_square(&counts(&[("a", 1_000_000), ("b", 1_000_000), ("c", 10_000)]), &[100.0, 100.0, 1.0]) < 13.8);
}

#[test]
fn unweighted_targets_get_nothing_if_another_has_weight() {
    assert_eq!(counts(&[("a", 0), ("b", 3), ("c", 0)]), [0, DRAWS, 0]);
}

#[test]
fn target_gets_its_exact_share_of_random_numbers() {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], &[("a", 90), ("b", 10)])])]);
    let selected = |random| select_target(rules.find(Some("m")).unwrap(), None, random).unwrap().name().to_string();
    // The first number that selects b is the smallest one of at least 0.9 · 2^64.
    let first_of_b = 16_602_069_666_338_596_455;
    assert_eq!((selected(0), selected(first_of_b - 1)), ("a".to_owned(), "a".to_owned()));
    assert_eq!((selected(first_of_b), selected(u64::MAX)), ("b".to_owned(), "b".to_owned()));
}

#[test]
fn rule_without_targets_selects_nothing() {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], &[])])]);
    let rule = rules.find(Some("m")).unwrap();
    assert!(select_target(rule, None, 0).is_none());
    assert!(select_target(rule, StickyKey::new(b"user"), 0).is_none());
}
