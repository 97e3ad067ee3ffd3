//! Judges the recorded traffic by the rules that were active. Pure.
//!
//! Two things must not happen: a request without a response, and a response by an adapter whose weight was 0 in every
//! rule that was active, at any router, from the request's start to its first byte.
//!
//! Where a scenario kills a process, the requests in flight at it cannot be saved, and a gateway that does not run
//! refuses connections. Such failures are counted apart ([`TrafficVerdict::in_flight`],
//! [`TrafficVerdict::gateway_refused`]), and only if they fit a [`ProcessOutage`]; all others are errors.

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

/// Everything that was recorded while clients sent requests.
#[derive(Debug, Clone, Default)]
pub struct TrafficRecord {
    /// All requests, in the order in which they ended.
    pub exchanges: Vec<RequestRecord>,
    /// The rule history of each router.
    pub routers: Vec<RouterHistory>,
    /// The processes that were killed meanwhile.
    pub outages: Vec<ProcessOutage>,
}

/// The time during which a killed process did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessOutage {
    /// The kind of process, which decides about the failures it can cause.
    pub target: KilledProcess,
    /// A moment just before the kill.
    pub from: Instant,
    /// A moment at which the process was certainly dead.
    pub dead_at: Instant,
    /// When its replacement answered; `None` while there is none.
    pub until: Option<Instant>,
}

/// The kinds of process that a scenario kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KilledProcess {
    /// The only gateway: connections are refused until it is back.
    Gateway,
    /// One of several servers: new requests go to the others.
    Server,
}

/// The judgment of one record; its `Display` is what a failed scenario prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficVerdict {
    /// Number of requests, with or without a response.
    pub requests: usize,
    /// Number of responses by version.
    pub by_model: BTreeMap<String, usize>,
    /// Requests that the only gateway refused while it was dead: a client that retries is served.
    pub gateway_refused: usize,
    /// Requests in flight at a process when it was killed.
    pub in_flight: usize,
    /// One message per request without a response for any other reason.
    pub errors: Vec<String>,
    /// One message per response by an adapter without weight.
    pub zero_weight_answers: Vec<String>,
    /// Responses during which a rule may have been active only between two polls.
    pub inconclusive: usize,
}

impl TrafficRecord {
    /// Judges every request by the rules and outages of this record.
    pub fn verdict(&self) -> TrafficVerdict {
        let mut verdict = TrafficVerdict { requests: self.exchanges.len(), ..TrafficVerdict::default() };
        for request in &self.exchanges {
            if let Some(model) = request.model() {
                *verdict.by_model.entry(model.to_owned()).or_default() += 1;
                verdict.check_response(request, model, &self.routers);
            }
            if let Some(failure) = request.failure() {
                verdict.record_failure(request, failure, &self.outages);
            }
        }
        verdict
    }

    /// Returns the weights of each rule at the first router, in the order in which the rules became active.
    pub fn splits(&self) -> Vec<&[(String, i32)]> {
        self.routers
            .iter()
            .take(1)
            .flat_map(|router| &router.intervals)
            .map(|interval| interval.weights.as_slice())
            .collect()
    }

    /// For each of these writes of the rewrite, returns the time until the last router reported its rule; writes that
    /// changed no rule are left out. Routers are polled every few milliseconds, so the times are upper bounds.
    pub fn propagation_delays(&self, writes: &[Instant]) -> Vec<Duration> {
        let confirmed_at = |router: &RouterHistory, from: Instant, to: Option<Instant>| {
            let changes = router.intervals.iter().filter_map(|interval| interval.until);
            changes.filter(|at| *at >= from && to.is_none_or(|to| *at < to)).min()
        };
        let delays = writes.iter().enumerate().filter_map(|(index, &write)| {
            let next = writes.get(index + 1).copied();
            let confirmed_at: Option<Vec<_>> =
                self.routers.iter().map(|router| confirmed_at(router, write, next)).collect();
            Some(confirmed_at?.into_iter().max()? - write)
        });
        delays.collect()
    }

    /// Returns the last moment at which a rule may have given `model` weight, or a request that it answered began.
    pub fn last_use(&self, model: &str) -> Option<Instant> {
        let starts =
            self.exchanges.iter().filter(|request| request.model() == Some(model)).map(|request| request.start);
        let gives_weight = |interval: &&RuleInterval| interval.weights.iter().any(|(id, _)| id == model);
        let ends = self
            .routers
            .iter()
            .flat_map(|router| &router.intervals)
            .filter(gives_weight)
            .filter_map(|interval| interval.until);
        starts.chain(ends).max()
    }
}

impl ProcessOutage {
    /// Returns whether the request may have been in flight at the process when it was killed.
    fn may_have_interrupted(&self, request: &RequestRecord) -> bool {
        request.start <= self.dead_at && request.end >= self.from
    }

    /// Returns whether the process may have been unable to accept the request's connection.
    fn may_have_refused(&self, request: &RequestRecord) -> bool {
        let was_dead = request.end >= self.from && self.until.is_none_or(|until| request.start <= until);
        self.target == KilledProcess::Gateway && was_dead
    }
}

impl TrafficVerdict {
    /// Returns the number of responses.
    pub fn answer_count(&self) -> usize {
        self.by_model.values().sum()
    }

    /// Returns whether there are responses, no errors, and no response by an adapter without weight.
    pub fn is_good(&self) -> bool {
        self.errors.is_empty() && self.zero_weight_answers.is_empty() && self.answer_count() > 0
    }

    fn record_failure(&mut self, request: &RequestRecord, failure: &RequestFailure, outages: &[ProcessOutage]) {
        if *failure == RequestFailure::ConnectionRefused
            && outages.iter().any(|outage| outage.may_have_refused(request))
        {
            self.gateway_refused += 1;
        } else if outages.iter().any(|outage| outage.may_have_interrupted(request)) {
            self.in_flight += 1;
        } else {
            let duration = request.end - request.start;
            self.errors.push(format!("{:?} request, {duration:.1?} after its start: {failure}", request.mode));
        }
    }

    fn check_response(&mut self, request: &RequestRecord, model: &str, routers: &[RouterHistory]) {
        let (start, end) = (request.start, request.first_byte.unwrap_or(request.end));
        let intervals: Vec<_> =
            routers.iter().flat_map(|router| active_during(&router.intervals, start, end)).collect();
        if intervals.iter().any(|interval| interval.weights.iter().any(|(id, weight)| id == model && *weight > 0)) {
            return;
        }
        if routers.iter().any(|router| may_have_missed_rule(router, start, end)) {
            self.inconclusive += 1;
            return;
        }
        let rules: Vec<_> =
            intervals.iter().map(|interval| format!("#{} {:?}", interval.sequence, interval.weights)).collect();
        let duration = end - start;
        self.zero_weight_answers
            .push(format!("{model} answered after {duration:.1?}, while the active rules were {}", rules.join(", ")));
    }
}

/// Returns the intervals that overlap the time from `start` to `end`.
fn active_during(intervals: &[RuleInterval], start: Instant, end: Instant) -> impl Iterator<Item = &RuleInterval> {
    intervals.iter().filter(move |interval| interval.from <= end && interval.until.is_none_or(|until| until >= start))
}

/// Returns whether a rule that no poll observed may have been active between `start` and `end`.
fn may_have_missed_rule(router: &RouterHistory, start: Instant, end: Instant) -> bool {
    let intervals = &router.intervals;
    let existed = end >= router.observed_since && router.gone_at.is_none_or(|until| start <= until);
    let before_first_rule = existed && intervals.first().is_none_or(|first| start < first.from);
    let skipped_rule = intervals.windows(2).any(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        // The missed rule was active between these two, of which both may have been active.
        after.sequence > before.sequence + 1 && after.from <= end && before.until.is_none_or(|until| until >= start)
    });
    before_first_rule || skipped_rule
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
        let mut messages = self.errors.iter().chain(&self.zero_weight_answers).take(10);
        messages.try_for_each(|message| write!(f, "\n  {message}"))
    }
}
