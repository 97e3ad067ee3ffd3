use super::*;
use crate::{
    fixtures::{empty_rules, rewrite},
    readiness::ServerStage,
};
use RewriteGroup::{Current, Legacy};
use prometheus_client::encoding::text::encode;
use rollora_cluster::ApiError;

/// A feed, and what can be seen of it.
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

    /// Where requests for `m` go.
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
fn requests_should_come_when_everything_was_told_for_the_first_time() {
    let mut bed = TestRuleSource::new();
    bed.state(&[Legacy], false, None);
    bed.reset(Legacy, &[("r", "v1")]);
    assert_eq!((bed.readiness.stage(), bed.metric(UP).as_str()), (ServerStage::Starting, "0"));
    bed.state(&[Legacy], true, None);
    assert_eq!((bed.readiness.stage(), bed.metric(UP).as_str()), (ServerStage::Serving, "1"));
    assert_eq!(bed.target().as_deref(), Some("v1"));
}

#[test]
fn whoever_asks_is_told_why_there_are_no_rules_yet() {
    let mut bed = TestRuleSource::new();
    let waits = "the rewrites have not been read for the first time";
    assert_eq!(bed.readiness.check(), (false, waits.to_owned()));
    bed.state(&[Legacy], false, Some(ApiError::Forbidden("the role lacks list".to_owned())));
    assert_eq!(bed.readiness.check(), (false, format!("{waits}: the role lacks list")));
    bed.state(&[Legacy], true, None);
    assert_eq!(bed.readiness.check(), (true, "ok".to_owned()));
}

#[test]
fn an_outage_takes_nothing_out_of_force_and_is_seen() {
    let mut bed = TestRuleSource::new();
    bed.reset(Legacy, &[("r", "v1")]);
    bed.state(&[Legacy], true, None);
    bed.state(&[Legacy], true, Some(ApiError::Unavailable("nobody answers".to_owned())));
    assert_eq!((bed.target().as_deref(), bed.metric(UP).as_str()), (Some("v1"), "0"));
    assert_eq!(bed.readiness.stage(), ServerStage::Serving);
    bed.reset(Legacy, &[("r", "v2")]);
    bed.state(&[Legacy], true, None);
    assert_eq!((bed.target().as_deref(), bed.metric(UP).as_str()), (Some("v2"), "1"));
}

#[test]
fn changes_come_into_force_one_by_one() {
    let mut bed = TestRuleSource::new();
    bed.reset(Legacy, &[("r", "v1"), ("s", "other")]);
    bed.apply(Legacy, "r", "v2");
    assert_eq!(bed.target().as_deref(), Some("v2"));
    bed.source.handle_event(RewriteEvent::Delete { group: Legacy, namespace: "ns".to_owned(), name: "r".to_owned() });
    assert_eq!(bed.target().as_deref(), Some("other"));
    bed.reset(Legacy, &[]);
    assert_eq!(bed.target(), None);
    assert_eq!(bed.metric(r#"rollora_rewrite_watch_news_total{kind="Reset"}"#), "2");
}

#[test]
fn installing_the_current_group_changes_nothing_and_is_reported() {
    let mut bed = TestRuleSource::new();
    bed.state(&[Legacy], false, None);
    bed.reset(Legacy, &[("r", "v1")]);
    bed.state(&[Legacy], true, None);
    bed.state(&[Current, Legacy], true, None);
    bed.reset(Current, &[]);
    assert_eq!(bed.target().as_deref(), Some("v1"));
    let groups = bed.active_rules.report(crate::clock::now()).groups;
    assert_eq!(groups, ["llm-d.ai", "inference.networking.x-k8s.io"]);
    assert_eq!(bed.metric(r#"rollora_rewrite_watch_group_served{group="llm-d.ai"}"#), "1");
    bed.apply(Current, "r", "v2");
    assert_eq!(bed.target().as_deref(), Some("v2"));
    // Removed again.
    bed.reset(Current, &[]);
    bed.state(&[Legacy], true, None);
    assert_eq!(bed.target().as_deref(), Some("v1"));
    assert_eq!(bed.metric(r#"rollora_rewrite_watch_group_served{group="llm-d.ai"}"#), "0");
}
