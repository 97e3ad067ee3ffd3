use super::*;
use crate::{
    fixtures::{active_rules, pool, rewrite, rule, timestamp},
    route,
};
use prometheus_client::encoding::text::encode;
use std::thread;

/// Starts a request for `model` and ends it in the same second.
fn request(active_rules: &ActiveRules, model: &str, second: i64) {
    let rules = active_rules.rules();
    let target = route::select_target(rules.find(Some(model)).unwrap(), None, 0).unwrap();
    target.metrics.count_decision();
    target.metrics.target_metrics().start_request(timestamp(second));
    target.metrics.target_metrics().end_request(false);
}

fn metrics(active_rules: &ActiveRules) -> String {
    let mut registry = Registry::default();
    active_rules.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn counters_survive_a_change_of_rules() {
    let split = |v1, v2| rewrite("r", vec![rule(&["m"], &[("m-v1", v1), ("m-v2", v2)])]);
    let active_rules = active_rules(&[split(90, 10)]);
    request(&active_rules, "m", 1);
    active_rules.apply(&split(50, 50));
    request(&active_rules, "m", 2);
    active_rules.apply(&rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])]));
    active_rules.apply(&split(50, 50));
    request(&active_rules, "m", 3);
    let text = metrics(&active_rules);
    let labels = r#"model_rewrite_name="r",model_name="m",target_model="m-v1""#;
    let decisions = format!("inference_extension_model_rewrite_decisions_total{{{labels}}} 3");
    assert!(text.contains(&decisions), "{text}");
    assert!(text.contains(r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="none"} 3"#), "{text}");
}

#[test]
fn last_use_survives_removal_of_the_target() {
    let active_rules = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 100)])])]);
    assert_eq!(active_rules.last_used("m-v1", timestamp(9)), None);
    request(&active_rules, "m", 5);
    active_rules.reset(&[rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])])]);
    request(&active_rules, "m", 7);
    assert_eq!(active_rules.last_used("m-v1", timestamp(9)), Some(timestamp(5)));
    assert_eq!(active_rules.last_used("never", timestamp(9)), None);
    let report = active_rules.report(timestamp(9));
    assert_eq!(
        report.last_used.into_iter().collect::<Vec<_>>(),
        [("m-v1".to_owned(), timestamp(5)), ("m-v2".to_owned(), timestamp(7))]
    );
}

#[test]
fn request_in_flight_counts_as_use_until_it_ends() {
    let active_rules = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 100)])])]);
    let target = Arc::clone(&active_rules.rules().find(Some("m")).unwrap().targets()[0]);
    target.metrics.target_metrics().start_request(timestamp(1));
    assert_eq!(active_rules.last_used("m-v1", timestamp(100)), Some(timestamp(100)));
    target.metrics.target_metrics().end_request(true);
    assert_eq!(active_rules.last_used("m-v1", timestamp(100)), Some(timestamp(1)));
}

#[test]
fn oldest_unused_targets_are_evicted_first() {
    let active_rules = active_rules(&[]);
    let generations = 5_000;
    for generation in 0..generations {
        let target = format!("m-v{generation}");
        active_rules.apply(&rewrite("r", vec![rule(&["m"], &[(&target, 100)])]));
        request(&active_rules, "m", generation);
    }
    let report = active_rules.report(timestamp(generations));
    // The maximum of kept targets, plus those whose series were not evicted yet.
    assert!((1_000..=2_100).contains(&report.last_used.len()), "{}", report.last_used.len());
    for generation in 4_001..generations {
        assert_eq!(report.last_used.get(&format!("m-v{generation}")), Some(&timestamp(generation)));
    }
    let series = metrics(&active_rules).lines().filter(|line| line.contains("decisions_total{")).count();
    assert!((1..=1_100).contains(&series), "{series}");
    assert!(metrics(&active_rules).contains(r#"target_model="m-v4999"} 1"#));
}

#[test]
fn reader_sees_a_consistent_rule_set() {
    let versions = |version: &str| {
        let name = |model: &str| format!("{model}-{version}");
        [rewrite("a", vec![rule(&["a"], &[(&name("a"), 1)])]), rewrite("b", vec![rule(&["b"], &[(&name("b"), 1)])])]
    };
    let active_rules = active_rules(&versions("v0"));
    let version = |rules: &RuleSet, model: &str| {
        let target = rules.find(Some(model)).unwrap().targets()[0].name().to_string();
        target.strip_prefix(model).unwrap().to_owned()
    };
    thread::scope(|scope| {
        let writer = scope.spawn(|| (0..500).for_each(|round| active_rules.reset(&versions(&format!("v{round}")))));
        while !writer.is_finished() {
            let rules = active_rules.rules();
            assert_eq!(version(&rules, "a"), version(&rules, "b"));
        }
    });
    assert_eq!(version(&active_rules.rules(), "a"), "-v499");
}

#[test]
fn deleting_a_rewrite_removes_its_rules() {
    let rewrites = [
        rewrite("a", vec![rule(&["m"], &[("old", 1)])]),
        rewrite("b", vec![rule(&["m"], &[("new", 1)]), rule(&[], &[("any", 1)])]),
    ];
    let active_rules = active_rules(&rewrites);
    let target = |model| active_rules.rules().find(Some(model)).map(|rule| rule.targets()[0].name().to_string());
    assert_eq!((target("m").as_deref(), target("x").as_deref()), (Some("old"), Some("any")));
    active_rules.delete(&RewriteKey::of(&rewrites[0]).unwrap());
    assert_eq!(target("m").as_deref(), Some("new"));
    active_rules.delete(&RewriteKey::of(&rewrites[1]).unwrap());
    assert_eq!((target("m"), target("x")), (None, None));
    active_rules.delete(&RewriteKey::of(&rewrites[1]).unwrap());
    assert_eq!(active_rules.report(timestamp(0)).models.len(), 0);
    assert_eq!(ActiveRules::new(pool(), &[]).report(timestamp(0)).groups.len(), 0);
}

#[test]
fn report_lists_the_groups_that_are_read() {
    let active_rules = ActiveRules::new(pool(), &[RewriteGroup::Legacy]);
    assert_eq!(active_rules.report(timestamp(0)).groups, ["inference.networking.x-k8s.io"]);
    active_rules.set_groups(&[RewriteGroup::Current, RewriteGroup::Legacy]);
    assert_eq!(active_rules.report(timestamp(0)).groups, ["llm-d.ai", "inference.networking.x-k8s.io"]);
}
