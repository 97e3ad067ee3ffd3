//! Judges the record of the clients by the rules that were in force. Pure.
//!
//! Two things must not happen: a request without an answer, and an answer by an adapter whose weight was 0 in every
//! rule in force, at any router, from the request's start to its first byte.
//!
//! Where a scenario kills a process, nobody can save the requests that it was working on, and a gateway that is not
//! there refuses connections. Such failures are counted apart ([`Verdict::in_flight`], [`Verdict::refused`]), and only
//! where they fit an [`Outage`]; all others are errors.

mod split_samples;
#[cfg(test)]
mod tests;

pub use split_samples::SplitSample;

use crate::{
    rule_recorder::{RouterHistory, RuleInterval},
    traffic::{RequestFailure, RequestRecord},
};
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// What was recorded while clients sent.
#[derive(Debug, Clone, Default)]
pub struct TrafficRecord {
    /// Every request.
    pub exchanges: Vec<RequestRecord>,
    /// The rules at each router.
    pub routers: Vec<RouterHistory>,
    /// What was killed.
    pub outages: Vec<ProcessOutage>,
}

/// A process that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessOutage {
    /// Which.
    pub target: KilledProcess,
    /// Before it was killed.
    pub from: Instant,
    /// When it was dead for certain.
    pub dead_at: Instant,
    /// When another one answered; not yet where absent.
    pub until: Option<Instant>,
}

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KilledProcess {
    /// The only gateway: until it is back, connections are refused.
    Gateway,
    /// One of several servers: new requests go to the others.
    Server,
}

/// What is to be said of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficVerdict {
    /// Requests.
    pub requests: usize,
    /// Answers by version.
    pub by_model: BTreeMap<String, usize>,
    /// Requests that the only gateway refused while it was dead: a client that tries again is served.
    pub gateway_refused: usize,
    /// Requests that a process was working on when it was killed.
    pub in_flight: usize,
    /// Requests without an answer for any other reason, in words.
    pub errors: Vec<String>,
    /// Answers by an adapter that had no weight, in words.
    pub zero_weight_answers: Vec<String>,
    /// Answers whose time overlaps one in which a rule came and went unseen.
    pub inconclusive: usize,
}

impl TrafficRecord {
    /// Judges it.
    pub fn verdict(&self) -> TrafficVerdict {
        let mut verdict = TrafficVerdict { requests: self.exchanges.len(), ..TrafficVerdict::default() };
        for exchange in &self.exchanges {
            if let Some(model) = exchange.model() {
                *verdict.by_model.entry(model.to_owned()).or_default() += 1;
                verdict.check_answer(exchange, model, &self.routers);
            }
            if let Some(failure) = exchange.failure() {
                verdict.record_failure(exchange, failure, &self.outages);
            }
        }
        verdict
    }

    /// The weights of each rule at the first router, in the order in which they came into force.
    pub fn splits(&self) -> Vec<&[(String, i32)]> {
        self.routers.iter().take(1).flat_map(|router| &router.intervals).map(|spell| spell.weights.as_slice()).collect()
    }

    /// How long after each of these writes of the rewrite the last router said that its rule is in force; writes that
    /// changed no rule are left out. A router is asked every few milliseconds, so this is rather too long.
    pub fn propagation_delays(&self, writes: &[Instant]) -> Vec<Duration> {
        let heard = |router: &RouterHistory, from: Instant, to: Option<Instant>| {
            let changes = router.intervals.iter().filter_map(|spell| spell.until);
            changes.filter(|at| *at >= from && to.is_none_or(|to| *at < to)).min()
        };
        let each = writes.iter().enumerate().filter_map(|(index, &write)| {
            let next = writes.get(index + 1).copied();
            let heard: Option<Vec<_>> = self.routers.iter().map(|router| heard(router, write, next)).collect();
            Some(heard?.into_iter().max()? - write)
        });
        each.collect()
    }

    /// The last moment at which some rule may have given `model` weight, or a request began that it answered.
    pub fn last_use(&self, model: &str) -> Option<Instant> {
        let starts = self.exchanges.iter().filter(|exchange| exchange.model() == Some(model)).map(|it| it.start);
        let gives_weight = |spell: &&RuleInterval| spell.weights.iter().any(|(id, _)| id == model);
        let ends = self
            .routers
            .iter()
            .flat_map(|router| &router.intervals)
            .filter(gives_weight)
            .filter_map(|spell| spell.until);
        starts.chain(ends).max()
    }
}

impl ProcessOutage {
    /// Whether the process can have been working on it when it was killed.
    fn may_have_interrupted(&self, exchange: &RequestRecord) -> bool {
        exchange.start <= self.dead_at && exchange.end >= self.from
    }

    /// Whether nobody can have listened.
    fn may_have_refused(&self, exchange: &RequestRecord) -> bool {
        let was_dead = exchange.end >= self.from && self.until.is_none_or(|until| exchange.start <= until);
        self.target == KilledProcess::Gateway && was_dead
    }
}

impl TrafficVerdict {
    /// How many answers.
    pub fn answer_count(&self) -> usize {
        self.by_model.values().sum()
    }

    /// Whether nothing happened that must not happen.
    pub fn is_good(&self) -> bool {
        self.errors.is_empty() && self.zero_weight_answers.is_empty() && self.answer_count() > 0
    }

    fn record_failure(&mut self, exchange: &RequestRecord, failure: &RequestFailure, outages: &[ProcessOutage]) {
        if *failure == RequestFailure::ConnectionRefused
            && outages.iter().any(|outage| outage.may_have_refused(exchange))
        {
            self.gateway_refused += 1;
        } else if outages.iter().any(|outage| outage.may_have_interrupted(exchange)) {
            self.in_flight += 1;
        } else {
            let took = exchange.end - exchange.start;
            self.errors.push(format!("{:?} request, {took:.1?} after its start: {failure}", exchange.mode));
        }
    }

    fn check_answer(&mut self, exchange: &RequestRecord, model: &str, routers: &[RouterHistory]) {
        let (start, end) = (exchange.start, exchange.first_byte.unwrap_or(exchange.end));
        let spells: Vec<_> = routers.iter().flat_map(|router| active_during(&router.intervals, start, end)).collect();
        if spells.iter().any(|spell| spell.weights.iter().any(|(id, weight)| id == model && *weight > 0)) {
            return;
        }
        if routers.iter().any(|router| may_have_missed_rule(router, start, end)) {
            self.inconclusive += 1;
            return;
        }
        let rules: Vec<_> = spells.iter().map(|spell| format!("#{} {:?}", spell.sequence, spell.weights)).collect();
        let took = end - start;
        self.zero_weight_answers
            .push(format!("{model} answered after {took:.1?}, while in force was {}", rules.join(", ")));
    }
}

/// The spells that may have been in force at some moment from `start` to `end`.
fn active_during(spells: &[RuleInterval], start: Instant, end: Instant) -> impl Iterator<Item = &RuleInterval> {
    spells.iter().filter(move |spell| spell.from <= end && spell.until.is_none_or(|until| until >= start))
}

/// Whether some rule may have been in force from `start` to `end` that nobody saw.
fn may_have_missed_rule(router: &RouterHistory, start: Instant, end: Instant) -> bool {
    let spells = &router.intervals;
    let was_there = end >= router.first_seen && router.gone_at.is_none_or(|until| start <= until);
    let before_all = was_there && spells.first().is_none_or(|first| start < first.from);
    let jumped = spells.windows(2).any(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        // What was missed came and went where both may have been in force.
        after.sequence > before.sequence + 1 && after.from <= end && before.until.is_none_or(|until| until >= start)
    });
    before_all || jumped
}

impl fmt::Display for TrafficVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} errors", self.requests, self.errors.len())?;
        if self.gateway_refused > 0 || self.in_flight > 0 {
            let (refused, in_flight) = (self.gateway_refused, self.in_flight);
            write!(f, " ({refused} refused by a dead gateway, {in_flight} in flight at a process that was killed)")?;
        }
        write!(f, ", {} answers by an adapter without weight", self.zero_weight_answers.len())?;
        if self.inconclusive > 0 {
            write!(f, " ({} not judged)", self.inconclusive)?;
        }
        self.by_model.iter().try_for_each(|(model, count)| write!(f, "; {model}: {count}"))?;
        let worst = self.errors.iter().chain(&self.zero_weight_answers).take(10);
        worst.into_iter().try_for_each(|words| write!(f, "\n  {words}"))
    }
}
