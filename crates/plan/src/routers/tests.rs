//! What proves a router, and what does not.

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
    let claim = ExpectedRule {
        model: &model,
        rollout_uid: "uid",
        rewrite_uid: Some("rewrite-uid"),
        written,
        weights: &weights,
        shadowed_by: None,
    };
    prove(kind, claim, Ok(routers), now)
}

fn proven(routers: &[ObservedRouter]) -> bool {
    proof(RouterKind::ExtProc, true, routers, Timestamp::UNIX_EPOCH).is_complete()
}

#[test]
fn every_router_must_report_our_rule_with_the_last_stamp_and_targets() {
    let ours = || rule(&[("v1", 90), ("v2", 10)]);
    let good = || router(Some(ours()));
    let cases = [
        ("no router", vec![], false),
        ("one", vec![good()], true),
        ("in another order", vec![router(Some(rule(&[("v2", 10), ("v1", 90)])))], true),
        ("one without a rule", vec![good(), router(None)], false),
        ("another rewrite", vec![router(Some(ActiveRule { uid: "other".to_owned(), ..ours() }))], false),
        ("an earlier stamp", vec![router(Some(ActiveRule { stamps: BTreeMap::new(), ..ours() }))], false),
        ("other targets", vec![router(Some(rule(&[("v1", 50), ("v2", 50)])))], false),
        ("one that is silent", vec![good(), ObservedRouter { report: Err("no answer".to_owned()), ..good() }], false),
    ];
    for (what, routers, expected) in cases {
        assert_eq!(proven(&routers), expected, "{what}");
    }
}

#[test]
fn nothing_is_proven_before_it_is_written() {
    let routers = [router(Some(rule(&[("v1", 90), ("v2", 10)])))];
    assert!(!proof(RouterKind::ExtProc, false, &routers, Timestamp::UNIX_EPOCH).is_complete());
}

#[test]
fn another_objects_exact_rule_is_a_shadow() {
    let other = ActiveRule { uid: "other".to_owned(), rewrite: "theirs".to_owned(), ..rule(&[("x", 1)]) };
    let proof = proof(RouterKind::ExtProc, true, &[router(Some(other))], Timestamp::UNIX_EPOCH);
    assert_eq!(proof.shadowed_by.as_deref(), Some("theirs"));
}

#[test]
fn an_endpoint_picker_is_given_its_grace() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    assert!(!proof(RouterKind::EndpointPicker, true, &[], at(9)).is_complete());
    assert!(proof(RouterKind::EndpointPicker, true, &[], at(10)).is_complete());
}

#[test]
fn a_picker_takes_over_from_when_the_rewrite_said_it_and_never_under_the_rule_of_another() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let mut weights = weights(&[("v1", 90), ("v2", 10)]);
    (weights.changed_at, weights.applied_at) = (Some(at(0)), Some(at(30)));
    let model = ModelName::new("small").unwrap();
    let claim = |shadow| ExpectedRule {
        model: &model,
        rollout_uid: "uid",
        rewrite_uid: Some("rewrite-uid"),
        written: true,
        weights: &weights,
        shadowed_by: shadow,
    };
    let proof = |shadow, now| prove(RouterKind::EndpointPicker, claim(shadow), Ok(&[]), at(now));
    assert!(!proof(None, 39).is_complete());
    assert!(proof(None, 40).is_complete());
    let shadowed = proof(Some("other"), 40);
    assert_eq!((shadowed.wait.unwrap().reason, shadowed.shadowed_by.as_deref()), (reason::SHADOWED_BY, Some("other")));
}
