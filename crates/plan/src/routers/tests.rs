//! Tests of the router proof: which reports complete it and which do not.

use super::*;
use rollora_api::names::{AdapterId, Sequence};
use std::collections::BTreeMap;

fn weights(targets: &[(&str, i32)]) -> TrafficWeights {
    let target = |(name, weight): &(&str, i32)| TargetWeight { id: AdapterId::new(*name).unwrap(), weight: *weight };
    TrafficWeights { desired: targets.iter().map(target).collect(), sequence: Sequence(7), ..TrafficWeights::default() }
}

fn rule(targets: &[(&str, i32)]) -> ActiveRule {
    let target = |(name, weight): &(&str, i32)| RewriteTarget {
        model_rewrite: (*name).to_owned(),
        weight: Some(*weight),
        ..RewriteTarget::default()
    };
    ActiveRule {
        rewrite: "ours".to_owned(),
        uid: "rewrite-uid".to_owned(),
        stamps: BTreeMap::from([("uid".to_owned(), 7)]),
        targets: targets.iter().map(target).collect(),
        ..ActiveRule::default()
    }
}

fn router(rule: Option<ActiveRule>) -> ObservedRouter {
    let models = rule.map(|rule| ("small".to_owned(), rule)).into_iter().collect();
    ObservedRouter { name: "r".to_owned(), report: Ok(RulesReport { models, ..RulesReport::default() }.into()) }
}

fn proof(kind: RouterKind, written: bool, routers: &[ObservedRouter], now: Timestamp) -> RouterProof {
    let mut weights = weights(&[("v1", 90), ("v2", 10)]);
    weights.changed_at = Some(Timestamp::UNIX_EPOCH);
    let model = ModelName::new("small").unwrap();
    let expected_rule = ExpectedRule {
        model: &model,
        rollout_uid: "uid",
        rewrite_uid: Some("rewrite-uid"),
        written,
        weights: &weights,
        shadowed_by: None,
    };
    prove(kind, expected_rule, Ok(routers), now)
}

fn proven(routers: &[ObservedRouter]) -> bool {
    proof(RouterKind::ExtProc, true, routers, Timestamp::UNIX_EPOCH).is_complete()
}

#[test]
fn every_router_must_report_our_rule_stamp_and_targets() {
    let ours = || rule(&[("v1", 90), ("v2", 10)]);
    let good = || router(Some(ours()));
    let cases = [
        ("no router", vec![], false),
        ("one with our rule", vec![good()], true),
        ("in another order", vec![router(Some(rule(&[("v2", 10), ("v1", 90)])))], true),
        ("one without a rule", vec![good(), router(None)], false),
        ("another rewrite", vec![router(Some(ActiveRule { uid: "other".to_owned(), ..ours() }))], false),
        ("an earlier stamp", vec![router(Some(ActiveRule { stamps: BTreeMap::new(), ..ours() }))], false),
        ("other targets", vec![router(Some(rule(&[("v1", 50), ("v2", 50)])))], false),
        (
            "one that does not respond",
            vec![good(), ObservedRouter { report: Err("no answer".to_owned()), ..good() }],
            false,
        ),
    ];
    for (what, routers, expected) in cases {
        assert_eq!(proven(&routers), expected, "{what}");
    }
}

#[test]
fn unwritten_weights_are_never_proven() {
    let routers = [router(Some(rule(&[("v1", 90), ("v2", 10)])))];
    assert!(!proof(RouterKind::ExtProc, false, &routers, Timestamp::UNIX_EPOCH).is_complete());
}

#[test]
fn exact_rule_of_another_rewrite_shadows_ours() {
    let other = ActiveRule { uid: "other".to_owned(), rewrite: "theirs".to_owned(), ..rule(&[("x", 1)]) };
    let proof = proof(RouterKind::ExtProc, true, &[router(Some(other))], Timestamp::UNIX_EPOCH);
    assert_eq!(proof.shadowed_by.as_deref(), Some("theirs"));
}

#[test]
fn endpoint_picker_is_proven_after_the_grace_period() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    assert!(!proof(RouterKind::EndpointPicker, true, &[], at(9)).is_complete());
    assert!(proof(RouterKind::EndpointPicker, true, &[], at(10)).is_complete());
}

#[test]
fn grace_period_starts_at_observed_write_unless_shadowed() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let mut weights = weights(&[("v1", 90), ("v2", 10)]);
    (weights.changed_at, weights.applied_at) = (Some(at(0)), Some(at(30)));
    let model = ModelName::new("small").unwrap();
    let expected_rule = |shadow| ExpectedRule {
        model: &model,
        rollout_uid: "uid",
        rewrite_uid: Some("rewrite-uid"),
        written: true,
        weights: &weights,
        shadowed_by: shadow,
    };
    let proof = |shadow, now| prove(RouterKind::EndpointPicker, expected_rule(shadow), Ok(&[]), at(now));
    assert!(!proof(None, 39).is_complete());
    assert!(proof(None, 40).is_complete());
    let shadowed = proof(Some("other"), 40);
    assert_eq!((shadowed.wait.unwrap().reason, shadowed.shadowed_by.as_deref()), (reason::SHADOWED_BY, Some("other")));
}
