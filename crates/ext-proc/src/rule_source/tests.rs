use super::*;
use crate::{
    fixtures::{empty_rules, rewrite},
    readiness::ServerStage,
};
use RewriteGroup::{Current, Legacy};
use prometheus_client::encoding::text::encode;
use rollora_cluster::ApiError;

/// A rule source with its outputs.
struct TestRuleSource {
    source: RuleSource,
    active_rules: Arc<ActiveRules>,
    readiness: ServerReadiness,
    registry: Registry,
}

impl TestRuleSource {
    fn new() -> Self {
        let (active_rules, readiness, mut registry) = (empty_rules(), ServerReadiness::new(), Registry::default());
        active_rules.set_groups(&[]);
        let source = RuleSource::new(Arc::clone(&active_rules), readiness.clone(), &mut registry);
        Self { source, active_rules, readiness, registry }
    }

    fn reset(&mut self, group: RewriteGroup, rewrites: &[(&str, &str)]) {
        let rewrites = rewrites.iter().map(|(name, target)| rewrite(group, name, "m", &[(target, 1)])).collect();
        self.source.handle_event(RewriteEvent::Reset { group, rewrites });
    }

    fn apply(&mut self, group: RewriteGroup, name: &str, target: &str) {
        self.source.handle_event(RewriteEvent::Apply(Box::new(rewrite(group, name, "m", &[(target, 1)]))));
    }

    fn state(&mut self, served: &[RewriteGroup], complete: bool, problem: Option<ApiError>) {
        self.source.handle_event(RewriteEvent::State(RewriteWatchState {
            served_groups: served.iter().copied().collect(),
            synced: complete,
            problem,
        }));
    }

    /// Returns the target of requests for `m`.
    fn target(&self) -> Option<String> {
        Some(self.active_rules.rules().find(Some("m"))?.targets()[0].name().to_string())
    }

    fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}

const UP: &str = "rollora_rewrite_watch_up";

#[test]
fn ready_after_all_groups_were_loaded_once() {
    let mut test = TestRuleSource::new();
    test.state(&[Legacy], false, None);
    test.reset(Legacy, &[("r", "v1")]);
    assert_eq!((test.readiness.stage(), test.metric(UP).as_str()), (ServerStage::Starting, "0"));
    test.state(&[Legacy], true, None);
    assert_eq!((test.readiness.stage(), test.metric(UP).as_str()), (ServerStage::Serving, "1"));
    assert_eq!(test.target().as_deref(), Some("v1"));
}

#[test]
fn readiness_says_why_there_are_no_rules_yet() {
    let mut test = TestRuleSource::new();
    let not_loaded = "the rewrites have not been loaded yet";
    assert_eq!(test.readiness.check(), (false, not_loaded.to_owned()));
    test.state(&[Legacy], false, Some(ApiError::Forbidden("the role lacks list".to_owned())));
    assert_eq!(test.readiness.check(), (false, format!("{not_loaded}: the role lacks list")));
    test.state(&[Legacy], true, None);
    assert_eq!(test.readiness.check(), (true, "ok".to_owned()));
}

#[test]
fn outage_removes_no_rule_and_is_reported() {
    let mut test = TestRuleSource::new();
    test.reset(Legacy, &[("r", "v1")]);
    test.state(&[Legacy], true, None);
    test.state(&[Legacy], true, Some(ApiError::Unavailable("connection refused".to_owned())));
    assert_eq!((test.target().as_deref(), test.metric(UP).as_str()), (Some("v1"), "0"));
    assert_eq!(test.readiness.stage(), ServerStage::Serving);
    test.reset(Legacy, &[("r", "v2")]);
    test.state(&[Legacy], true, None);
    assert_eq!((test.target().as_deref(), test.metric(UP).as_str()), (Some("v2"), "1"));
}

#[test]
fn single_changes_are_applied() {
    let mut test = TestRuleSource::new();
    test.reset(Legacy, &[("r", "v1"), ("s", "other")]);
    test.apply(Legacy, "r", "v2");
    assert_eq!(test.target().as_deref(), Some("v2"));
    test.source.handle_event(RewriteEvent::Delete { group: Legacy, namespace: "ns".to_owned(), name: "r".to_owned() });
    assert_eq!(test.target().as_deref(), Some("other"));
    test.reset(Legacy, &[]);
    assert_eq!(test.target(), None);
    assert_eq!(test.metric(r#"rollora_rewrite_watch_events_total{kind="Reset"}"#), "2");
}

#[test]
fn installing_the_current_group_keeps_rules_and_is_reported() {
    let mut test = TestRuleSource::new();
    test.state(&[Legacy], false, None);
    test.reset(Legacy, &[("r", "v1")]);
    test.state(&[Legacy], true, None);
    test.state(&[Current, Legacy], true, None);
    test.reset(Current, &[]);
    assert_eq!(test.target().as_deref(), Some("v1"));
    let groups = test.active_rules.report(crate::clock::now()).groups;
    assert_eq!(groups, ["llm-d.ai", "inference.networking.x-k8s.io"]);
    assert_eq!(test.metric(r#"rollora_rewrite_watch_group_served{group="llm-d.ai"}"#), "1");
    test.apply(Current, "r", "v2");
    assert_eq!(test.target().as_deref(), Some("v2"));
    // The current group is uninstalled.
    test.reset(Current, &[]);
    test.state(&[Legacy], true, None);
    assert_eq!(test.target().as_deref(), Some("v1"));
    assert_eq!(test.metric(r#"rollora_rewrite_watch_group_served{group="llm-d.ai"}"#), "0");
}
