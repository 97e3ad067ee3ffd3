use super::*;
use crate::{
    names::AdapterId,
    rollout::spec::{Follow, Pause, RewriteRef},
};

/// A valid spec with steps.
pub(crate) fn valid_spec() -> RolloutSpec {
    let yaml = "
model: chat
poolRef: {name: pool}
adapter: {follow: {pattern: chat-v*}}
adaptersRef: {name: adapters}
strategy: {steps: [{setWeight: 10}, {pause: {duration: 10m}}, {setWeight: 100}]}
";
    crate::yaml::decode(yaml).unwrap()
}

fn choice_by_id(id: &str, source: Option<&str>) -> AdapterChoice {
    AdapterChoice { follow: None, id: Some(AdapterId::new(id).unwrap()), source: source.map(str::to_owned) }
}

/// A change of the valid spec, and the paths of the expected errors.
type SpecCase = (fn(&mut RolloutSpec), &'static [&'static str]);

/// The tests of the custom resource also check these cases against its rules.
pub(crate) const CASES: &[SpecCase] = &[
    (|_| {}, &[]),
    (|spec| spec.adapter = choice_by_id("chat-v1", None), &[]),
    (|spec| spec.adapter = choice_by_id("chat-v1", Some("org/chat-v1")), &[]),
    (|spec| spec.adapter = AdapterChoice::default(), &["spec.adapter"]),
    (|spec| spec.adapter.id = choice_by_id("x", None).id, &["spec.adapter"]),
    (|spec| spec.adapter.source = Some("org/x".to_owned()), &["spec.adapter.source"]),
    (|spec| spec.adapter = choice_by_id("x", Some("")), &["spec.adapter.source"]),
    (|spec| spec.adapter = choice_by_id("chat", None), &["spec.adapter.id"]),
    (|spec| set_pattern(spec, "chat-v"), &["spec.adapter.follow.pattern"]),
    (|spec| set_pattern(spec, "chat-*-*"), &["spec.adapter.follow.pattern"]),
    (|spec| set_pattern(spec, "chat*"), &["spec.adapter.follow.pattern"]),
    (|spec| set_pattern(spec, "*"), &["spec.adapter.follow.pattern"]),
    (|spec| set_pattern(spec, "*hat"), &["spec.adapter.follow.pattern"]),
    (|spec| set_pattern(spec, "*-chat"), &[]),
    (|spec| set_pattern(spec, "chat*chat"), &[]),
    (|spec| spec.strategy.steps[0].pause = Some(Pause::default()), &["spec.strategy.steps[0]"]),
    (|spec| spec.strategy.steps[1] = Step::default(), &["spec.strategy.steps[1]"]),
    (|spec| spec.strategy.steps[0].set_weight = Some(0), &[]),
    (|spec| spec.strategy.steps[0].set_weight = Some(101), &["spec.strategy.steps[0].setWeight"]),
    (|spec| spec.strategy.steps[2].set_weight = Some(-1), &["spec.strategy.steps[2].setWeight"]),
    (|spec| spec.strategy.steps[0].set_weight = Some(100), &[]),
    (|spec| spec.strategy.total_weight = 1_000_000, &[]),
    (|spec| spec.strategy.total_weight = 1_000_001, &["spec.strategy.totalWeight"]),
    (|spec| (spec.strategy.total_weight, spec.strategy.steps) = (0, vec![]), &["spec.strategy.totalWeight"]),
    (|spec| spec.strategy.steps = vec![weight_step(1); 50], &[]),
    (|spec| spec.strategy.steps = vec![weight_step(1); 51], &["spec.strategy.steps"]),
    (|spec| spec.strategy.sticky_header = Some("x-session-id".to_owned()), &[]),
    (|spec| spec.strategy.sticky_header = Some("x session".to_owned()), &["spec.strategy.stickyHeader"]),
    (|spec| spec.strategy.sticky_header = Some(String::new()), &["spec.strategy.stickyHeader"]),
    (|spec| spec.strategy.sticky_header = Some("x".repeat(129)), &["spec.strategy.stickyHeader"]),
    (|spec| spec.pool_ref.name = String::new(), &["spec.poolRef.name"]),
    (|spec| spec.pool_ref.kind = Some("x".repeat(64)), &["spec.poolRef.kind"]),
    (|spec| spec.pool_ref.group = "x".repeat(254), &["spec.poolRef.group"]),
    (|spec| spec.adapters_ref.name = "x".repeat(254), &["spec.adaptersRef.name"]),
    (|spec| spec.adapters_ref.key = String::new(), &["spec.adaptersRef.key"]),
    (|spec| spec.adapters_ref.key = "rollora.yaml".to_owned(), &["spec.adaptersRef.key"]),
    (|spec| spec.rewrite_ref = Some(RewriteRef { name: String::new() }), &["spec.rewriteRef.name"]),
];

fn set_pattern(spec: &mut RolloutSpec, pattern: &str) {
    spec.adapter.follow = Some(Follow { pattern: pattern.to_owned(), ..spec.adapter.follow.take().unwrap() });
}

fn weight_step(weight: i32) -> Step {
    Step { set_weight: Some(weight), pause: None }
}

#[test]
fn each_error_names_its_field() {
    for (index, (change, expected)) in CASES.iter().enumerate() {
        let mut spec = valid_spec();
        change(&mut spec);
        let paths: Vec<_> = spec.validate().into_iter().map(|error| error.path).collect();
        assert_eq!(paths, *expected, "case {index}");
    }
}

/// Changes of a spec with an id and a source, and the immutable paths that each changes.
pub(crate) const CHANGES: &[SpecCase] = &[
    (|_| {}, &[]),
    (|spec| spec.model = crate::names::ModelName::new("other").unwrap(), &["spec.model"]),
    (|spec| spec.pool_ref.name = "other".to_owned(), &["spec.poolRef"]),
    (|spec| spec.rewrite_ref = Some(RewriteRef { name: "other".to_owned() }), &["spec.rewriteRef"]),
    (|spec| spec.rewrite_ref = None, &["spec.rewriteRef"]),
    (|spec| spec.adapter = choice_by_id("v1", Some("b")), &["spec.adapter.source"]),
    (|spec| spec.adapter = choice_by_id("v2", Some("b")), &[]),
    (|spec| spec.adapter = choice_by_id("v1", None), &[]),
    (|spec| spec.strategy.steps.clear(), &[]),
    (|spec| spec.paused = true, &[]),
];

pub(crate) fn spec_before_change() -> RolloutSpec {
    let rewrite_ref = Some(RewriteRef { name: "rewrite".to_owned() });
    RolloutSpec { adapter: choice_by_id("v1", Some("a")), rewrite_ref, ..valid_spec() }
}

#[test]
fn changes_of_immutable_fields_are_reported() {
    for (index, (change, expected)) in CHANGES.iter().enumerate() {
        let mut new = spec_before_change();
        change(&mut new);
        let paths: Vec<_> =
            immutable_changes(&spec_before_change(), &new).into_iter().map(|error| error.path).collect();
        assert_eq!(paths, *expected, "case {index}");
    }
}
