use super::*;
use crate::{
    fixtures::{rewrite, rule, rule_set},
    route::tests::chi_square,
};
use proptest::prelude::*;

/// Returns the target of each of `clients`, for targets with these weights under a rewrite with this UID.
fn selected_targets(uid: &str, weights: &[(&str, i32)], clients: impl Iterator<Item = Vec<u8>>) -> Vec<String> {
    let rules = rule_set(&[rewrite(uid, vec![rule(&["m"], weights)])]);
    let targets = rules.find(Some("m")).unwrap().targets();
    clients.map(|client| select_target(targets, StickyKey::new(&client).unwrap()).unwrap().name().to_string()).collect()
}

fn client_ids(count: usize) -> impl Iterator<Item = Vec<u8>> {
    (1..=count).map(|number| format!("user-{number}").into_bytes())
}

#[test]
fn logarithms_match_the_definition() {
    // Computed by another program with 60 decimal digits.
    for (draw, expected) in [
        (0, 1_125_899_906_842_624),
        (1, 1_125_899_906_842_624),
        (2, 1_108_307_720_798_208),
        (3, 1_098_016_951_656_515),
        (123_456_789, 653_031_957_103_713),
        (1 << 63, 17_592_186_044_416),
        ((1 << 63) + 1, 17_592_186_044_416),
        (0xdead_beef_cafe_babe, 3_539_200_889_683),
        (u64::MAX, 1),
    ] {
        assert_eq!(cost(draw), expected, "{draw:#x}");
    }
}

#[test]
fn hashes_match_the_definition() {
    assert_eq!(StickyKey::new(b"user-1"), Some(StickyKey(0xf84b_a2aa_754a_4bd4)));
    assert_eq!(target_seed("0b1d", "a-v1"), 0x82a5_f7eb_ffe9_c23c);
    assert_eq!(StickyKey::new(b""), None);
}

#[test]
fn selection_matches_the_definition_at_every_replica() {
    // Computed by another program from the definition, with exact fractions.
    type ReferenceCase<'a> = (&'a str, &'a [(&'a str, i32)], [u8; 14]);
    let cases: [ReferenceCase<'_>; 4] = [
        ("0b1d", &[("a-v1", 90), ("a-v2", 10)], *b"11112111111211"),
        ("0b1d", &[("a-v1", 50), ("a-v2", 50)], *b"22112111112222"),
        ("other", &[("a-v1", 50), ("a-v2", 50)], *b"12121112212121"),
        ("0b1d", &[("a-v1", 1), ("a-v2", 1), ("a-v3", 1)], *b"33112311332233"),
    ];
    for (uid, weights, expected) in cases {
        let clients = client_ids(12).chain(["ä".as_bytes().to_vec(), vec![0xff]]);
        let digits: Vec<u8> =
            selected_targets(uid, weights, clients).iter().map(|name| *name.as_bytes().last().unwrap()).collect();
        assert_eq!(String::from_utf8_lossy(&digits), String::from_utf8_lossy(&expected), "{uid} {weights:?}");
    }
}

#[test]
fn clients_are_distributed_by_weight() {
    // Random counts exceed these bounds once in a thousand runs.
    for (weights, bound) in [
        (vec![("a", 90), ("b", 10)], 10.8),
        (vec![("a", 99), ("b", 1)], 10.8),
        (vec![("a", 1), ("b", 1)], 10.8),
        (vec![("a", 5), ("b", 3), ("c", 2)], 13.8),
    ] {
        let names = selected_targets("uid", &weights, client_ids(20_000));
        let count = |name: &str| u32::try_from(names.iter().filter(|selected| *selected == name).count()).unwrap();
        let counts: Vec<u32> = weights.iter().map(|(name, _)| count(name)).collect();
        let shares: Vec<f64> = weights.iter().map(|(_, weight)| f64::from(*weight)).collect();
        let statistic = chi_square(&counts, &shares);
        assert!(statistic < bound, "{weights:?}: {counts:?} {statistic}");
    }
}

proptest! {
    #[test]
    fn raising_a_weight_moves_clients_only_to_that_target(
        weights in prop::collection::vec(1..1_000_000_i32, 2..5),
        raised in any::<prop::sample::Index>(),
        by in 1..1_000_000_i32,
        uid in "[a-f0-9]{8}",
    ) {
        let names = ["a", "b", "c", "d"];
        let raised = raised.index(weights.len());
        let before: Vec<(&str, i32)> = names.into_iter().zip(weights.iter().copied()).collect();
        let mut after = before.clone();
        after[raised].1 += by;
        let before = selected_targets(&uid, &before, client_ids(200));
        let after = selected_targets(&uid, &after, client_ids(200));
        for (was, is) in before.into_iter().zip(after) {
            prop_assert!(was == is || is == names[raised], "{} to {}", was, is);
        }
    }

    #[test]
    fn new_target_moves_clients_only_to_itself(weight in 1..100, uid in "[a-f0-9]{8}") {
        let before = selected_targets(&uid, &[("a", 100)], client_ids(100));
        let split = selected_targets(&uid, &[("a", 100 - weight + 1), ("b", weight)], client_ids(100));
        let three = selected_targets(&uid, &[("a", 100 - weight + 1), ("b", weight), ("c", 7)], client_ids(100));
        prop_assert!(before.iter().all(|name| name == "a"));
        prop_assert!(split.iter().zip(three).all(|(was, is)| *was == is || is == "c"));
    }

    #[test]
    fn target_order_does_not_matter(
        weights in prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), 1..100), 1..5)
    ) {
        let mut reversed = weights.clone();
        reversed.reverse();
        let targets = selected_targets("uid", &weights, client_ids(50));
        prop_assert_eq!(targets, selected_targets("uid", &reversed, client_ids(50)));
    }
}
