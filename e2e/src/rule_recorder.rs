//! Records which rules were active at each router, and when, by polling every router's `/rules`.
//!
//! A poll observes the rule at some moment between its request and its response. A [`RuleInterval`] therefore reaches
//! from the last request that was answered with the previous rule to the first response with the next one: longer than
//! the rule was active, never shorter. A rule that came and went between two polls shows as a gap in the sequence.

use crate::conditions::target_weights;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rollora_api::router_report::{ActiveRule, RulesReport};
use rollora_testbed::{clock, http::ListenAddress};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The longest time in which one rule can have been active at one router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInterval {
    /// The rule was not active before this moment.
    pub from: Instant,
    /// The rule was not active after this moment; `None` while it is active.
    pub until: Option<Instant>,
    /// The highest sequence of the Rollout's annotation on the rewrites of the rule.
    pub sequence: i64,
    /// The ids with a weight above 0, with their weights.
    pub weights: Vec<(String, i32)>,
}

/// One response of a router to `/rules`.
#[derive(Debug, Clone)]
struct RulePoll {
    sent_at: Instant,
    received_at: Instant,
    rule: Option<ActiveRule>,
}

/// Returns the routers that exist now.
pub type RouterDiscovery = Arc<dyn Fn() -> Vec<ListenAddress> + Send + Sync>;

/// What was observed of one router while it existed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterHistory {
    /// When the router was discovered: no request reached it before.
    pub observed_since: Instant,
    /// When it was no longer discovered; `None` while it exists.
    pub gone_at: Option<Instant>,
    /// The active rules, in order of time.
    pub intervals: Vec<RuleInterval>,
}

/// Polls until it is dropped, including routers that appear later.
#[derive(Debug)]
pub struct RuleRecorder {
    histories: Arc<Mutex<Vec<SharedPollState>>>,
    _tasks: JoinSet<()>,
}

type SharedPollState = Arc<Mutex<PollState>>;

#[derive(Debug)]
struct PollState {
    history: RouterHistory,
    last_asked: Option<Instant>,
}

impl RuleRecorder {
    /// Starts to poll the routers for the rule of `model`.
    pub fn start(routers: &RouterDiscovery, model: &str) -> Self {
        let (histories, mut tasks) = (Arc::default(), JoinSet::new());
        let mut pollers = RouterPollers { histories: Arc::clone(&histories), polls: BTreeMap::new() };
        // The routers that exist already are known before anything else happens.
        pollers.sync(&routers(), model);
        let (routers, model) = (Arc::clone(routers), model.to_owned());
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                pollers.sync(&routers(), &model);
            }
        });
        Self { histories, _tasks: tasks }
    }

    /// Returns the history of each router so far, in order of discovery.
    pub fn histories(&self) -> Vec<RouterHistory> {
        let histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let router = |history: &SharedPollState| history.lock().unwrap_or_else(PoisonError::into_inner).history.clone();
        histories.iter().map(router).collect()
    }
}

struct RouterPollers {
    histories: Arc<Mutex<Vec<SharedPollState>>>,
    polls: BTreeMap<String, (SharedPollState, JoinSet<()>)>,
}

impl RouterPollers {
    fn sync(&mut self, routers: &[ListenAddress], model: &str) {
        let names: Vec<_> = routers.iter().map(ListenAddress::to_string).collect();
        for (name, address) in names.iter().zip(routers) {
            if self.polls.contains_key(name) {
                continue;
            }
            let router = RouterHistory { observed_since: clock::now(), gone_at: None, intervals: Vec::new() };
            let history = Arc::new(Mutex::new(PollState { history: router, last_asked: None }));
            let mut poll_task = JoinSet::new();
            poll_task.spawn(poll_router(address.clone(), model.to_owned(), Arc::clone(&history)));
            self.histories.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&history));
            self.polls.insert(name.clone(), (history, poll_task));
        }
        self.polls.retain(|name, (history, _)| {
            let exists = names.contains(name);
            if !exists {
                history.lock().unwrap_or_else(PoisonError::into_inner).close(clock::now());
            }
            exists
        });
    }
}

impl PollState {
    fn record(&mut self, poll: RulePoll) {
        let Some(rule) = poll.rule else { return };
        let sequence = rule.stamps.values().max().copied().unwrap_or_default();
        let weights: Vec<_> = target_weights(&rule).into_iter().filter(|(_, weight)| *weight > 0).collect();
        let previous_sent_at = self.last_asked.replace(poll.sent_at);
        let intervals = &mut self.history.intervals;
        match intervals.last_mut() {
            Some(last) if last.sequence == sequence && last.weights == weights => {}
            last => {
                if let Some(last) = last {
                    last.until = Some(poll.received_at);
                }
                let from = previous_sent_at.unwrap_or(poll.sent_at);
                intervals.push(RuleInterval { from, until: None, sequence, weights });
            }
        }
    }
}

impl PollState {
    /// Ends the history: the router is gone, and its rule with it.
    fn close(&mut self, now: Instant) {
        self.history.gone_at = Some(now);
        if let Some(last) = self.history.intervals.last_mut() {
            last.until.get_or_insert(now);
        }
    }
}

async fn poll_router(router: ListenAddress, model: String, history: Arc<Mutex<PollState>>) {
    let mut connection = None;
    loop {
        match poll(&router, &model, &mut connection).await {
            Some(poll) => history.lock().unwrap_or_else(PoisonError::into_inner).record(poll),
            None => connection = None,
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn poll(
    router: &ListenAddress,
    model: &str,
    open: &mut Option<rollora_testbed::http::HttpConnection>,
) -> Option<RulePoll> {
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(rollora_testbed::http::HttpConnection::open(router).await.ok()?),
    };
    let sent_at = clock::now();
    let response = connection.send(rollora_testbed::http::request("GET", "/rules", None)).await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let body = response.into_body().collect().await.ok()?.to_bytes();
    let mut report: RulesReport = serde_json::from_slice(&body).ok()?;
    Some(RulePoll { sent_at, received_at: clock::now(), rule: report.models.remove(model) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::rewrite::RewriteTarget;

    fn rule(sequence: i64, targets: &[(&str, i32)]) -> ActiveRule {
        let target = |(id, weight): &(&str, i32)| RewriteTarget {
            model_rewrite: (*id).to_owned(),
            weight: Some(*weight),
            ..RewriteTarget::default()
        };
        ActiveRule {
            stamps: [("uid".to_owned(), sequence)].into(),
            targets: targets.iter().map(target).collect(),
            ..ActiveRule::default()
        }
    }

    #[test]
    fn interval_covers_the_whole_time_a_rule_was_active() {
        let start = clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let router = RouterHistory { observed_since: at(0), gone_at: None, intervals: Vec::new() };
        let mut history = PollState { history: router, last_asked: None };
        for (sent_at, rule) in [
            (0, None),
            (10, Some(rule(1, &[("v1", 100)]))),
            (20, Some(rule(1, &[("v1", 100)]))),
            (30, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
            (40, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
        ] {
            history.record(RulePoll { sent_at: at(sent_at), received_at: at(sent_at + 3), rule });
        }
        let weights = |targets: &[(&str, i32)]| targets.iter().map(|(id, it)| ((*id).to_owned(), *it)).collect();
        let mut expected = [
            RuleInterval { from: at(10), until: Some(at(33)), sequence: 1, weights: weights(&[("v1", 100)]) },
            RuleInterval { from: at(20), until: None, sequence: 2, weights: weights(&[("v1", 90), ("v2", 10)]) },
        ];
        assert_eq!(history.history.intervals, expected);

        history.close(at(50));
        expected[1].until = Some(at(50));
        assert_eq!((history.history.gone_at, history.history.intervals), (Some(at(50)), expected.to_vec()));
    }
}
