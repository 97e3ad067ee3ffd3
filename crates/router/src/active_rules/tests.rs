use super::*;
use crate::{
    fixtures::{active_rules, pool, rewrite, rule, timestamp},
    route,
};
use prometheus_client::encoding::text::encode;
use std::thread;

/// Sends a request for `model` on its way, and ends it in the same second.
fn request(in_force: &ActiveRules, model: &str, second: i64) {
    let rules = in_force.rules();
    let target = route::select_target(rules.find(Some(model)).unwrap(), None, 0).unwrap();
    target.metrics.count_decision();
    target.metrics.target_metrics().start_request(timestamp(second));
    target.metrics.target_metrics().end_request(false);
}

fn metrics(in_force: &ActiveRules) -> String {
    let mut registry = Registry::default();
    in_force.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn what_is_counted_goes_on_over_a_change_of_rules() {
    let split = |v1, v2| rewrite("r", vec![rule(&["m"], &[("m-v1", v1), ("m-v2", v2)])]);
    let in_force = active_rules(&[split(90, 10)]);
    request(&in_force, "m", 1);
    in_force.apply(&split(50, 50));
    request(&in_force, "m", 2);
    in_force.apply(&rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])]));
    in_force.apply(&split(50, 50));
    request(&in_force, "m", 3);
    let counted = metrics(&in_force);
    let labels = r#"model_rewrite_name="r",model_name="m",target_model="m-v1""#;
    let decisions = format!("inference_extension_model_rewrite_decisions_total{{{labels}}} 3");
    assert!(counted.contains(&decisions), "{counted}");
    assert!(
        counted.contains(r#"rollora_router_requests_total{rewrite="ns/r",target="m-v1",code="none"} 3"#),
        "{counted}"
    );
}

#[test]
fn a_target_that_left_the_rules_is_remembered_with_its_last_use() {
    let in_force = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 100)])])]);
    assert_eq!(in_force.last_used("m-v1", timestamp(9)), None);
    request(&in_force, "m", 5);
    in_force.reset(&[rewrite("r", vec![rule(&["m"], &[("m-v2", 100)])])]);
    request(&in_force, "m", 7);
    assert_eq!(in_force.last_used("m-v1", timestamp(9)), Some(timestamp(5)));
    assert_eq!(in_force.last_used("never", timestamp(9)), None);
    let report = in_force.report(timestamp(9));
    assert_eq!(
        report.last_used.into_iter().collect::<Vec<_>>(),
        [("m-v1".to_owned(), timestamp(5)), ("m-v2".to_owned(), timestamp(7))]
    );
}

#[test]
fn a_request_in_flight_is_a_use_until_it_ends() {
    let in_force = active_rules(&[rewrite("r", vec![rule(&["m"], &[("m-v1", 100)])])]);
    let target = Arc::clone(&in_force.rules().find(Some("m")).unwrap().targets()[0]);
    target.metrics.target_metrics().start_request(timestamp(1));
    assert_eq!(in_force.last_used("m-v1", timestamp(100)), Some(timestamp(100)));
    target.metrics.target_metrics().end_request(true);
    assert_eq!(in_force.last_used("m-v1", timestamp(100)), Some(timestamp(1)));
}

#[test]
fn departed_targets_are_forgotten_from_the_oldest_on() {
    let in_force = active_rules(&[]);
    let generations = 5_000;
    for generation in 0..generations {
        let target = format!("m-v{generation}");
        in_force.apply(&rewrite("r", vec![rule(&["m"], &[(&target, 100)])]));
        request(&in_force, "m", generation);
    }
    let report = in_force.report(timestamp(generations));
    // As many as are remembered at most, and those whose series have not been dropped yet.
    assert!((1_000..=2_100).contains(&report.last_used.len()), "{}", report.last_used.len());
    for generation in 4_001..generations {
        assert_eq!(report.last_used.get(&format!("m-v{generation}")), Some(&timestamp(generation)));
    }
    let series = metrics(&in_force).lines().filter(|line| line.contains("decisions_total{")).count();
    assert!((1..=1_100).contains(&series), "{series}");
    assert!(metrics(&in_force).contains(r#"target_model="m-v4999"} 1"#));
}

#[test]
fn a_reader_sees_the_rules_of_one_moment() {
    let versions = |version: &str| {
        let name = |model: &str| format!("{model}-{version}");
        [rewrite("a", vec![rule(&["a"], &[(&name("a"), 1)])]), rewrite("b", vec![rule(&["b"], &[(&name("b"), 1)])])]
    };
    let in_force = active_rules(&versions("v0"));
    let version = |rules: &RuleSet, model: &str| {
        let target = rules.find(Some(model)).unwrap().targets()[0].name().to_string();
        target.strip_prefix(model).unwrap().to_owned()
    };
    thread::scope(|scope| {
        let writer = scope.spawn(|| (0..500).for_each(|round| in_force.reset(&versions(&format!("v{round}")))));
        while !writer.is_finished() {
            let rules = in_force.rules();
            assert_eq!(version(&rules, "a"), version(&rules, "b"));
        }
    });
    assert_eq!(version(&in_force.rules(), "a"), "-v499");
}

#[test]
fn taking_out_a_rewrite_takes_its_rules_out() {
    let rewrites = [
        rewrite("a", vec![rule(&["m"], &[("old", 1)])]),
        rewrite("b", vec![rule(&["m"], &[("new", 1)]), rule(&[], &[("any", 1)])]),
    ];
    let in_force = active_rules(&rewrites);
    let target = |model| in_force.rules().find(Some(model)).map(|rule| rule.targets()[0].name().to_string());
    assert_eq!((target("m").as_deref(), target("x").as_deref()), (Some("old"), Some("any")));
    in_force.delete(&RewriteKey::of(&rewrites[0]).unwrap());
    assert_eq!(target("m").as_deref(), Some("new"));
    in_force.delete(&RewriteKey::of(&rewrites[1]).unwrap());
    assert_eq!((target("m"), target("x")), (None, None));
    in_force.delete(&RewriteKey::of(&rewrites[1]).unwrap());
    assert_eq!(in_force.report(timestamp(0)).models.len(), 0);
    assert_eq!(ActiveRules::new(pool(), &[]).report(timestamp(0)).groups.len(), 0);
}

#[test]
fn the_report_names_the_groups_that_are_read_now() {
    let in_force = ActiveRules::new(pool(), &[RewriteGroup::Legacy]);
    assert_eq!(in_force.report(timestamp(0)).groups, ["inference.networking.x-k8s.io"]);
    in_force.set_groups(&[RewriteGroup::Current, RewriteGroup::Legacy]);
    assert_eq!(in_force.report(timestamp(0)).groups, ["llm-d.ai", "inference.networking.x-k8s.io"]);
}
