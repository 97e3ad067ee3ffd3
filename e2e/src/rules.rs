//! Which rules were in force, and when: every router is asked for its `/rules` all the time.
//!
//! A poll sees a rule at some moment between the question and the answer. So a [`Spell`] reaches from the last question
//! that was answered with the rule before it to the first answer with the rule after it: longer than the rule was in
//! force, never shorter. A rule that came and went between two polls shows as a gap in the sequence.

use crate::{clock, http::Address, seen::weights};
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rollora_api::router_report::{RuleInForce, RulesReport};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const EVERY: Duration = Duration::from_millis(5);

/// The longest time that one rule can have been in force at one router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spell {
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
struct Look {
    asked: Instant,
    answered: Instant,
    rule: Option<RuleInForce>,
}

/// Asks all the time until it is dropped.
#[derive(Debug)]
pub struct RulesLog {
    routers: Vec<Arc<Mutex<History>>>,
    _polls: JoinSet<()>,
}

/// What one router was seen to do.
#[derive(Debug, Default)]
struct History {
    spells: Vec<Spell>,
    last_asked: Option<Instant>,
}

impl RulesLog {
    /// Begins to ask the routers for the rule of `model`.
    pub fn start(routers: &[Address], model: &str) -> Self {
        let mut polls = JoinSet::new();
        let routers = routers.iter().map(|router| {
            let history = Arc::default();
            polls.spawn(poll(router.clone(), model.to_owned(), Arc::clone(&history)));
            history
        });
        Self { routers: routers.collect(), _polls: polls }
    }

    /// The spells of each router so far.
    pub fn so_far(&self) -> Vec<Vec<Spell>> {
        let history =
            |router: &Arc<Mutex<History>>| router.lock().unwrap_or_else(PoisonError::into_inner).spells.clone();
        self.routers.iter().map(history).collect()
    }
}

impl History {
    fn add(&mut self, look: Look) {
        let Some(rule) = look.rule else { return };
        let sequence = rule.stamps.values().max().copied().unwrap_or_default();
        let weights: Vec<_> = weights(&rule).into_iter().filter(|(_, weight)| *weight > 0).collect();
        let asked = self.last_asked.replace(look.asked);
        match self.spells.last_mut() {
            Some(last) if last.sequence == sequence && last.weights == weights => {}
            last => {
                if let Some(last) = last {
                    last.until = Some(look.answered);
                }
                let from = asked.unwrap_or(look.asked);
                self.spells.push(Spell { from, until: None, sequence, weights });
            }
        }
    }
}

async fn poll(router: Address, model: String, history: Arc<Mutex<History>>) {
    let mut connection = None;
    loop {
        match look(&router, &model, &mut connection).await {
            Some(look) => history.lock().unwrap_or_else(PoisonError::into_inner).add(look),
            None => connection = None,
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(router: &Address, model: &str, open: &mut Option<crate::http::Connection>) -> Option<Look> {
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(crate::http::Connection::open(router).await.ok()?),
    };
    let asked = clock::now();
    let answer = connection.send(crate::http::request("GET", "/rules", None)).await.ok()?;
    if answer.status() != StatusCode::OK {
        return None;
    }
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    let mut report: RulesReport = serde_json::from_slice(&body).ok()?;
    Some(Look { asked, answered: clock::now(), rule: report.models.remove(model) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::rewrite::RewriteTarget;

    fn rule(sequence: i64, targets: &[(&str, i32)]) -> RuleInForce {
        let target = |(id, weight): &(&str, i32)| RewriteTarget {
            model_rewrite: (*id).to_owned(),
            weight: Some(*weight),
            ..RewriteTarget::default()
        };
        RuleInForce {
            stamps: [("uid".to_owned(), sequence)].into(),
            targets: targets.iter().map(target).collect(),
            ..RuleInForce::default()
        }
    }

    #[test]
    fn a_spell_is_never_shorter_than_the_rule_was_in_force() {
        let start = clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut history = History::default();
        for (asked, rule) in [
            (0, None),
            (10, Some(rule(1, &[("v1", 100)]))),
            (20, Some(rule(1, &[("v1", 100)]))),
            (30, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
            (40, Some(rule(2, &[("v1", 90), ("v2", 10)]))),
        ] {
            history.add(Look { asked: at(asked), answered: at(asked + 3), rule });
        }
        let weights = |targets: &[(&str, i32)]| targets.iter().map(|(id, it)| ((*id).to_owned(), *it)).collect();
        let expected = [
            Spell { from: at(10), until: Some(at(33)), sequence: 1, weights: weights(&[("v1", 100)]) },
            Spell { from: at(20), until: None, sequence: 2, weights: weights(&[("v1", 90), ("v2", 10)]) },
        ];
        assert_eq!(history.spells, expected);
    }
}
