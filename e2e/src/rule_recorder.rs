//! Which rules were in force, and when: every router is asked for its `/rules` all the time.
//!
//! A poll sees a rule at some moment between the question and the answer. So a [`Spell`] reaches from the last question
//! that was answered with the rule before it to the first answer with the rule after it: longer than the rule was in
//! force, never shorter. A rule that came and went between two polls shows as a gap in the sequence.

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

/// The longest time that one rule can have been in force at one router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInterval {
    /// Not before.
    pub from: Instant,
    /// Not after; still in force where absent.
    pub until: Option<Instant>,
    /// The Rollout's sequence on the rewrite.
    pub sequence: i64,
    /// The ids that have weight, with their weights.
    pub weights: Vec<(String, i32)>,
}

/// One answer of a router: the moments around it, and the rule for the model.
#[derive(Debug, Clone)]
struct RulePoll {
    sent_at: Instant,
    received_at: Instant,
    rule: Option<ActiveRule>,
}

/// Which routers there are at the moment.
pub type RouterDiscovery = Arc<dyn Fn() -> Vec<ListenAddress> + Send + Sync>;

/// What one router was seen to do while it was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterHistory {
    /// It cannot have been asked by anybody before.
    pub first_seen: Instant,
    /// Nor after; still there where absent.
    pub gone_at: Option<Instant>,
    /// The rules, in order.
    pub intervals: Vec<RuleInterval>,
}

/// Asks all the time until it is dropped. A router that comes is asked from then on.
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
    /// Begins to ask the routers for the rule of `model`.
    pub fn start(routers: &RouterDiscovery, model: &str) -> Self {
        let (histories, mut asking) = (Arc::default(), JoinSet::new());
        let mut known = RouterPollers { histories: Arc::clone(&histories), polls: BTreeMap::new() };
        // Those that are there are asked before anything else happens.
        known.sync(&routers(), model);
        let (routers, model) = (Arc::clone(routers), model.to_owned());
        asking.spawn(async move {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                known.sync(&routers(), &model);
            }
        });
        Self { histories, _tasks: asking }
    }

    /// What each router was seen to do so far, in the order in which they came.
    pub fn histories(&self) -> Vec<RouterHistory> {
        let histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let router = |history: &SharedPollState| history.lock().unwrap_or_else(PoisonError::into_inner).history.clone();
        histories.iter().map(router).collect()
    }
}

/// Who is asked.
struct RouterPollers {
    histories: Arc<Mutex<Vec<SharedPollState>>>,
    polls: BTreeMap<String, (SharedPollState, JoinSet<()>)>,
}

impl RouterPollers {
    fn sync(&mut self, now_there: &[ListenAddress], model: &str) {
        let names: Vec<_> = now_there.iter().map(ListenAddress::to_string).collect();
        for (name, address) in names.iter().zip(now_there) {
            if self.polls.contains_key(name) {
                continue;
            }
            let router = RouterHistory { first_seen: clock::now(), gone_at: None, intervals: Vec::new() };
            let history = Arc::new(Mutex::new(PollState { history: router, last_asked: None }));
            let mut poll_task = JoinSet::new();
            poll_task.spawn(poll_router(address.clone(), model.to_owned(), Arc::clone(&history)));
            self.histories.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&history));
            self.polls.insert(name.clone(), (history, poll_task));
        }
        self.polls.retain(|name, (history, _)| {
            let stays = names.contains(name);
            if !stays {
                history.lock().unwrap_or_else(PoisonError::into_inner).close(clock::now());
            }
            stays
        });
    }
}

impl PollState {
    fn record(&mut self, look: RulePoll) {
        let Some(rule) = look.rule else { return };
        let sequence = rule.stamps.values().max().copied().unwrap_or_default();
        let weights: Vec<_> = target_weights(&rule).into_iter().filter(|(_, weight)| *weight > 0).collect();
        let asked = self.last_asked.replace(look.sent_at);
        let spells = &mut self.history.intervals;
        match spells.last_mut() {
            Some(last) if last.sequence == sequence && last.weights == weights => {}
            last => {
                if let Some(last) = last {
                    last.until = Some(look.received_at);
                }
                let from = asked.unwrap_or(look.sent_at);
                spells.push(RuleInterval { from, until: None, sequence, weights });
            }
        }
    }
}

impl PollState {
    /// The router is gone, and its rule with it.
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
        match look(&router, &model, &mut connection).await {
            Some(look) => history.lock().unwrap_or_else(PoisonError::into_inner).record(look),
            None => connection = None,
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn look(
    router: &ListenAddress,
    model: &str,
    open: &mut Option<rollora_testbed::http::HttpConnection>,
) -> Option<RulePoll> {
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(rollora_testbed::http::HttpConnection::open(router).await.ok()?),
    };
    let asked = clock::now();
    let answer = connection.send(rollora_testbed::http::request("GET", "/rules", None)).await.ok()?;
    if answer.status() != StatusCode::OK {
        return None;
    }
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    let mut report: RulesReport = serde_json::from_slice(&body).ok()?;
    Some(RulePoll { sent_at: asked, received_at: clock::now(), rule: report.models.remove(model) })
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
    fn a_spell_is_never_shorter_than_the_rule_was_in_force() {
        let start = clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let router = RouterHistory { first_seen: at(0), gone_at: None, intervals: Vec::new() };
        let mut history = PollState { history: router, last_asked: None };
        for (asked, rule) in [
            (0, None),
            (10, Some(rule(1, &[("v1", 100)]))),
            (20, Some(rule(1, &[("v1", 100)]))),
            (30, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
            (40, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
        ] {
            history.record(RulePoll { sent_at: at(asked), received_at: at(asked + 3), rule });
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
