use super::*;
use crate::fixtures::{rewrite, rule, rule_set};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DRAWS: u32 = 20_000;

/// How often each target of a rule with these weights is chosen.
fn counts(weights: &[(&str, i32)]) -> Vec<u32> {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], weights)])]);
    let rule = rules.find(Some("m")).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut counts = vec![0; weights.len()];
    for _ in 0..DRAWS {
        let chosen = select_target(rule, None, random.random()).unwrap();
        counts[weights.iter().position(|(name, _)| *name == &**chosen.name()).unwrap()] += 1;
    }
    counts
}

/// Pearson's statistic of the counts against the shares.
pub(super) fn chi_square(counts: &[u32], shares: &[f64]) -> f64 {
    let (draws, sum): (f64, f64) = (counts.iter().map(|count| f64::from(*count)).sum(), shares.iter().sum());
    let expected = shares.iter().map(|share| draws * share / sum);
    counts.iter().zip(expected).map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected).sum()
}

#[test]
fn targets_are_chosen_by_their_weights() {
    // 16.3 and 13.8 are exceeded once in a thousand by chance, with three degrees of freedom and with two.
    assert!(chi_square(&counts(&[("a", 0), ("b", 0), ("c", 0), ("d", 0)]), &[1.0; 4]) < 16.3);
    assert!(chi_square(&counts(&[("a", 70), ("b", 20), ("c", 10)]), &[7.0, 2.0, 1.0]) < 13.8);
    assert!(chi_square(&counts(&[("a", 1_000_000), ("b", 1_000_000), ("c", 10_000)]), &[100.0, 100.0, 1.0]) < 13.8);
}

#[test]
fn beside_a_weight_targets_without_one_get_nothing() {
    assert_eq!(counts(&[("a", 0), ("b", 3), ("c", 0)]), [0, DRAWS, 0]);
}

#[test]
fn a_target_gets_exactly_its_part_of_all_numbers() {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], &[("a", 90), ("b", 10)])])]);
    let chosen = |random| select_target(rules.find(Some("m")).unwrap(), None, random).unwrap().name().to_string();
    // The first number of b is the smallest whose share of 2^64 is nine tenths.
    let first_of_b = 16_602_069_666_338_596_455;
    assert_eq!((chosen(0), chosen(first_of_b - 1)), ("a".to_owned(), "a".to_owned()));
    assert_eq!((chosen(first_of_b), chosen(u64::MAX)), ("b".to_owned(), "b".to_owned()));
}

#[test]
fn a_rule_without_targets_chooses_nothing() {
    let rules = rule_set(&[rewrite("r", vec![rule(&["m"], &[])])]);
    let rule = rules.find(Some("m")).unwrap();
    assert!(select_target(rule, None, 0).is_none());
    assert!(select_target(rule, StickyKey::new(b"user"), 0).is_none());
}
