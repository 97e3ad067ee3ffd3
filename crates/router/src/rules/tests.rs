use super::*;
use crate::{
    active_rules::ActiveRules,
    fixtures::{
        active_rules, as_legacy, created_at, pool, rewrite, rule, rule_set, timestamp, with_sequence,
        with_sticky_header,
    },
};
use proptest::prelude::*;
use rollora_api::{
    names::ModelName,
    rewrite::RewriteRule,
    router_report::{Overlap, RulesReport},
};

/// Returns the targets that a request for `model` can get.
fn targets(rewrites: &[InferenceModelRewrite], model: Option<&str>) -> Option<Vec<String>> {
    let rules = rule_set(rewrites);
    Some(rules.find(model)?.targets().iter().map(|target| target.name().to_string()).collect())
}

fn rule_to(models: &[&str], target: &str) -> RewriteRule {
    rule(models, &[(target, 1)])
}

/// Description, rewrites, requested model, expected target.
type PrecedenceCase = (&'static str, Vec<InferenceModelRewrite>, Option<&'static str>, Option<&'static str>);

#[test]
fn active_rule_is_the_one_upstream_selects() {
    let old = |name, rules| created_at(1, rewrite(name, rules));
    let new = |name, rules| created_at(2, rewrite(name, rules));
    let cases: Vec<PrecedenceCase> = vec![
        ("no rewrite", vec![], Some("m"), None),
        ("no rule", vec![old("a", vec![])], Some("m"), None),
        ("another model", vec![old("a", vec![rule_to(&["other"], "t")])], Some("m"), None),
        ("exact", vec![old("a", vec![rule_to(&["m"], "t")])], Some("m"), Some("t")),
        ("any of the matches", vec![old("a", vec![rule_to(&["k", "m"], "t")])], Some("m"), Some("t")),
        ("compared byte for byte", vec![old("a", vec![rule_to(&["m"], "t")])], Some("M"), None),
        ("no trimming", vec![old("a", vec![rule_to(&["m"], "t")])], Some("m "), None),
        ("generic", vec![old("a", vec![rule_to(&[], "g")])], Some("m"), Some("g")),
        ("generic fills a missing model", vec![old("a", vec![rule_to(&[], "g")])], None, Some("g")),
        ("exact does not fill a missing model", vec![old("a", vec![rule_to(&["m"], "t")])], None, None),
        (
            "exact before older generic",
            vec![new("a", vec![rule_to(&["m"], "t")]), old("b", vec![rule_to(&[], "g")])],
            Some("m"),
            Some("t"),
        ),
        (
            "older before newer",
            vec![new("a", vec![rule_to(&["m"], "t")]), old("b", vec![rule_to(&["m"], "u")])],
            Some("m"),
            Some("u"),
        ),
        (
            "older generic",
            vec![new("a", vec![rule_to(&[], "t")]), old("b", vec![rule_to(&[], "u")])],
            Some("m"),
            Some("u"),
        ),
        (
            "first rule of an object",
            vec![old("a", vec![rule_to(&["m"], "t"), rule_to(&["m"], "u")])],
            Some("m"),
            Some("t"),
        ),
        (
            "by name within the same second",
            vec![old("b", vec![rule_to(&["m"], "u")]), old("a", vec![rule_to(&["m"], "t")])],
            Some("m"),
            Some("t"),
        ),
        (
            "current group before legacy group",
            vec![as_legacy(old("a", vec![rule_to(&["m"], "t")])), new("b", vec![rule_to(&["m"], "u")])],
            Some("m"),
            Some("u"),
        ),
        (
            "legacy for other models",
            vec![as_legacy(old("a", vec![rule_to(&["m"], "t")])), new("b", vec![rule_to(&["n"], "u")])],
            Some("m"),
            Some("t"),
        ),
        (
            "a current generic rule before legacy ones",
            vec![as_legacy(old("a", vec![rule_to(&["m"], "t")])), new("b", vec![rule_to(&[], "u")])],
            Some("m"),
            Some("u"),
        ),
        (
            "a target is not matched again",
            vec![old("a", vec![rule_to(&["m"], "n"), rule_to(&["n"], "t")])],
            Some("m"),
            Some("n"),
        ),
    ];
    for (name, mut rewrites, model, target) in cases {
        for _ in 0..2 {
            let expected = target.map(|target| vec![target.to_owned()]);
            assert_eq!(targets(&rewrites, model), expected, "{name}");
            rewrites.reverse();
        }
    }
}

#[test]
fn irrelevant_rewrites_have_no_rules() {
    let ours = rewrite("a", vec![rule_to(&["m"], "t")]);
    let mut other_pool = ours.clone();
    other_pool.spec.pool_ref.name = "other".to_owned();
    let mut other_group = ours.clone();
    other_group.spec.pool_ref.group = "inference.networking.x-k8s.io".to_owned();
    let mut foreign = ours.clone();
    foreign.api_version = "inference.networking.k8s.io/v1alpha2".to_owned();
    let mut deleted = ours.clone();
    deleted.metadata.deletion_timestamp = Some(timestamp(5));
    for rewrite in [other_pool, other_group, foreign, deleted.clone()] {
        assert_eq!(targets(&[rewrite], Some("m")), None);
    }
    let active_rules = active_rules(&[ours]);
    active_rules.apply(&deleted);
    assert!(active_rules.rules().find(Some("m")).is_none());
}

#[test]
fn unknown_match_type_matches_nothing() {
    let mut unknown = rule_to(&["m"], "t");
    unknown.matches[0].model.type_ = Some("Prefix".to_owned());
    assert_eq!(targets(&[rewrite("a", vec![unknown.clone()])], Some("m")), None);
    unknown.matches.extend(rule_to(&["n"], "t").matches);
    let rewrites = [rewrite("a", vec![unknown])];
    assert_eq!(targets(&rewrites, Some("m")), None);
    assert_eq!(targets(&rewrites, Some("n")), Some(vec!["t".to_owned()]));
}

#[test]
fn weights_follow_upstream() {
    for (spec_weights, expected) in [
        (vec![("a", 0), ("b", 0)], vec![("a", 1), ("b", 1)]),
        (vec![("a", 70), ("b", 30)], vec![("a", 70), ("b", 30)]),
        (vec![("a", 70), ("b", 0)], vec![("a", 70)]),
        (vec![("a", 0)], vec![("a", 1)]),
        (vec![("a", 5), ("a", 7), ("b", 1)], vec![("a", 12), ("b", 1)]),
        (vec![("a", -3), ("b", 2)], vec![("b", 2)]),
        (vec![("a", -3)], vec![("a", 1)]),
        (vec![], vec![]),
        (
            vec![("a", i32::MAX), ("b", i32::MAX), ("c", i32::MAX)],
            vec![("a", 0x7fff_ffff), ("b", 0x7fff_ffff), ("c", 0x7fff_ffff)],
        ),
    ] {
        let rules = rule_set(&[rewrite("r", vec![rule(&["m"], &spec_weights)])]);
        let targets = rules.find(Some("m")).unwrap().targets();
        let weights: Vec<(&str, u64)> = targets.iter().map(|target| (&**target.name(), target.weight())).collect();
        assert_eq!(weights, expected, "{spec_weights:?}");
    }
}

#[test]
fn report_contains_the_active_rule() {
    let canary = with_sequence("rollout-uid", 7, rewrite("a", vec![rule(&["m"], &[("m-v1", 90), ("m-v2", 10)])]));
    let older = as_legacy(created_at(-5, rewrite("b", vec![rule_to(&["m", "n"], "t"), rule_to(&[], "g")])));
    let report = active_rules(&[canary.clone(), older]).report(timestamp(0));
    assert_eq!(report.groups, ["llm-d.ai", "inference.networking.x-k8s.io"]);
    let rule = report.rule(&ModelName::new("m").unwrap()).unwrap();
    assert_eq!((rule.rewrite.as_str(), rule.uid.as_str(), rule.group.as_str()), ("ns/a", "a", "llm-d.ai"));
    assert_eq!(rule.stamps, BTreeMap::from([("rollout-uid".to_owned(), 7)]));
    assert_eq!(rule.targets, canary.spec.rules[0].targets);
    assert_eq!(report.models.keys().collect::<Vec<_>>(), ["m", "n"]);
    assert_eq!(report.generic.unwrap().rewrite, "ns/b");
    let overlap = Overlap {
        model: Some("m".to_owned()),
        active: "llm-d.ai ns/a".to_owned(),
        shadowed: vec!["inference.networking.x-k8s.io ns/b".to_owned()],
    };
    assert_eq!(report.overlaps, [overlap]);
}

#[test]
fn current_generic_rule_hides_legacy_rules_in_report() {
    let report =
        active_rules(&[rewrite("a", vec![rule_to(&[], "g")]), as_legacy(rewrite("b", vec![rule_to(&["m"], "t")]))])
            .report(timestamp(0));
    assert!(report.models.is_empty());
    assert_eq!(report.rule(&ModelName::new("m").unwrap()).unwrap().rewrite, "ns/a");
    assert_eq!(report.overlaps.len(), 1);
}

#[test]
fn invalid_header_names_are_not_sticky_headers() {
    let rules = rule_set(&[
        with_sticky_header("X-Session-Id ", rewrite("a", vec![rule_to(&["m"], "t")])),
        with_sticky_header("no header", rewrite("b", vec![rule_to(&["n"], "t")])),
    ]);
    assert_eq!(rules.find(Some("m")).unwrap().sticky_header().map(|name| &**name), Some("x-session-id"));
    assert_eq!(rules.find(Some("n")).unwrap().sticky_header(), None);
    assert_eq!(rules.sticky_headers().len(), 1);
}

fn any_rewrite() -> impl Strategy<Value = InferenceModelRewrite> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let models = prop::collection::vec(prop::sample::select(vec!["m", "n", "o"]), 0..3);
    let rules = prop::collection::vec((models, prop::sample::select(vec!["t", "u"])), 0..3);
    (name, rules, 0..3_i64, any::<bool>(), any::<bool>()).prop_map(|(name, rules, second, is_legacy, is_ours)| {
        let rules = rules.into_iter().map(|(models, target)| rule_to(&models, target)).collect();
        let mut rewrite = created_at(second, rewrite(name, rules));
        if !is_ours {
            rewrite.spec.pool_ref.name = "other".to_owned();
        }
        if is_legacy { as_legacy(rewrite) } else { rewrite }
    })
}

/// Naive implementation of the precedence in the module documentation.
fn expected_rule(rewrites: &[InferenceModelRewrite], model: Option<&str>) -> Option<(String, usize)> {
    let mut candidates: Vec<_> = Vec::new();
    for rewrite in rewrites.iter().filter(|rewrite| rewrite.spec.pool_ref == pool()) {
        for (index, rule) in rewrite.spec.rules.iter().enumerate() {
            let is_exact = rule.matches.iter().any(|exact| Some(exact.model.value.as_str()) == model);
            if is_exact || rule.matches.is_empty() {
                let metadata = &rewrite.metadata;
                let object = (metadata.creation_timestamp, metadata.namespace.clone(), metadata.name.clone());
                candidates.push((rewrite.group() == Some(RewriteGroup::Legacy), !is_exact, object, index));
            }
        }
    }
    candidates.into_iter().min().map(|(is_legacy, _, (.., name), index)| (format!("{is_legacy} {name}"), index))
}

fn without_usage(report: RulesReport) -> RulesReport {
    RulesReport { last_used: BTreeMap::new(), ..report }
}

proptest! {
    #[test]
    fn arrival_order_does_not_matter(
        (rewrites, shuffled) in prop::collection::vec(any_rewrite(), 0..8)
            .prop_map(|rewrites| {
                // Keep each object once: the last of equal keys.
                let by_key = rewrites.into_iter().map(|rewrite| (RewriteKey::of(&rewrite), rewrite));
                by_key.collect::<HashMap<_, _>>().into_values().collect::<Vec<_>>()
            })
            .prop_flat_map(|rewrites| (Just(rewrites.clone()), Just(rewrites).prop_shuffle()))
    ) {
        prop_assert_eq!(active_rules(&rewrites).report(timestamp(0)), active_rules(&shuffled).report(timestamp(0)));
        let rules = rule_set(&shuffled);
        for model in [None, Some("m"), Some("n"), Some("o"), Some("p")] {
            let found = rules.find(model).map(|rule| {
                let (object, index) = rule.rank();
                let legacy = rule.report().group == RewriteGroup::Legacy.name();
                (format!("{legacy} {}", object.to_string().trim_start_matches("ns/")), index)
            });
            prop_assert_eq!(found, expected_rule(&rewrites, model), "{:?}", model);
        }
    }

    #[test]
    fn single_changes_give_the_result_of_a_reset(
        changes in prop::collection::vec((any_rewrite(), 0..5_u8), 0..12)
    ) {
        let one_by_one = ActiveRules::new(pool(), &[RewriteGroup::Current, RewriteGroup::Legacy]);
        let mut remaining = HashMap::new();
        for (rewrite, change) in changes {
            let key = RewriteKey::of(&rewrite).unwrap();
            match change {
                0 => {
                    one_by_one.delete(&key);
                    remaining.remove(&key);
                }
                // Reset its group to this rewrite only.
                1 => {
                    one_by_one.reset_group(key.group, std::slice::from_ref(&rewrite));
                    remaining.retain(|other: &RewriteKey, _| other.group != key.group);
                    remaining.insert(key, rewrite);
                }
                _ => {
                    one_by_one.apply(&rewrite);
                    remaining.insert(key, rewrite);
                }
            }
        }
        let remaining: Vec<_> = remaining.into_values().collect();
        let expected = active_rules(&remaining).report(timestamp(0));
        prop_assert_eq!(without_usage(one_by_one.report(timestamp(0))), without_usage(expected));
    }
}
