//! Records requests, arrivals and failures during the soak, and judges them afterwards.

use super::model_server::ModelName;
use rollora_e2e::rule_recorder::RouterHistory;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Written concurrently by the clients and by the model server.
#[derive(Debug)]
pub(super) struct SoakLedger {
    epoch: Instant,
    sent: AtomicU64,
    answered: AtomicU64,
    streamed: AtomicU64,
    canceled: AtomicU64,
    arrivals: Mutex<Vec<Arrival>>,
    failures: Mutex<Vec<FailedRequest>>,
    violations: Mutex<Vec<String>>,
}

/// A request as the model server received it, under the name that a rule gave it.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    start: Instant,
    received_at: Instant,
    /// The generation of the rule; `None` if the client's name has no rule.
    generation: Option<u32>,
}

#[derive(Debug, Clone)]
struct FailedRequest {
    start: Instant,
    end: Instant,
    before_headers: bool,
    detail: String,
}

/// A request without a response, or with an incomplete one.
#[derive(Debug)]
#[expect(dead_code, reason = "printed if the run fails")]
pub(super) struct LostRequest {
    pub(super) explained_by_kill: bool,
    detail: String,
    since_start: Duration,
    elapsed: Duration,
    /// Time from the last kill before the end of the request to its start.
    since_kill: Option<Duration>,
}

/// A replica that was killed, with the interval of its death.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplicaKill {
    /// A moment just before the signal.
    pub(super) signaled_at: Instant,
    /// A moment at which the process had certainly exited.
    pub(super) exited_at: Instant,
}

/// The intervals in which a generation's rules may have been active at some replica.
#[derive(Debug, Default)]
pub(super) struct RuleTimeline {
    intervals: BTreeMap<u32, Vec<(Instant, Instant)>>,
}

#[derive(Debug)]
pub(super) struct SoakReport {
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) streamed: u64,
    pub(super) canceled: u64,
    pub(super) with_rule: usize,
    pub(super) without_rule: usize,
    pub(super) kills: usize,
    pub(super) generations: usize,
    pub(super) lost: Vec<LostRequest>,
    pub(super) violations: Vec<String>,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SoakLedger {
    pub(super) fn new(epoch: Instant) -> Self {
        let [sent, answered, streamed, canceled] = [const { AtomicU64::new(0) }; 4];
        let (arrivals, failures, violations) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { epoch, sent, answered, streamed, canceled, arrivals, failures, violations }
    }

    /// Encodes a moment as nanoseconds since the start, for a request header.
    pub(super) fn to_nanos(&self, moment: Instant) -> u64 {
        u64::try_from((moment - self.epoch).as_nanos()).unwrap()
    }

    fn instant_of(&self, nanos: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanos)
    }

    /// Counts a request, and returns its number.
    pub(super) fn next_number(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn record_response(&self, streamed: bool) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.streamed.fetch_add(u64::from(streamed), Ordering::Relaxed);
    }

    pub(super) fn record_cancel(&self) {
        self.canceled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record_failure(&self, start: Instant, end: Instant, before_headers: bool, message: String) {
        lock(&self.failures).push(FailedRequest { start, end, before_headers, detail: message });
    }

    /// Records something that must never happen.
    pub(super) fn record_violation(&self, message: String) {
        lock(&self.violations).push(message);
    }

    /// Records that the model server received a request for this model.
    pub(super) fn record_arrival(&self, start_nanos: u64, arrival: Instant, model: ModelName<'_>) {
        let generation = model.generation();
        lock(&self.arrivals).push(Arrival { start: self.instant_of(start_nanos), received_at: arrival, generation });
    }

    pub(super) fn report(&self, rules: &RuleTimeline, outages: &[ReplicaKill]) -> SoakReport {
        let (arrivals, mut violations) = (lock(&self.arrivals), lock(&self.violations).clone());
        for arrival in arrivals.iter() {
            if let Some(generation) = arrival.generation
                && !rules.was_active(generation, arrival.start, arrival.received_at)
            {
                let [start, end] = [arrival.start, arrival.received_at].map(|moment| moment - self.epoch);
                let intervals = rules.format_intervals(generation, self.epoch);
                violations.push(format!("generation {generation} from {start:.4?} to {end:.4?}, active {intervals}"));
            }
        }
        let lost = lock(&self.failures).iter().map(|failure| failure.classify(self.epoch, outages)).collect();
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        SoakReport {
            sent: self.sent(),
            answered: count(&self.answered),
            streamed: count(&self.streamed),
            canceled: count(&self.canceled),
            with_rule: arrivals.iter().filter(|it| it.generation.is_some()).count(),
            without_rule: arrivals.iter().filter(|it| it.generation.is_none()).count(),
            kills: outages.len(),
            generations: rules.intervals.len(),
            lost,
            violations,
        }
    }
}

impl FailedRequest {
    /// Only a request in flight when a replica died can have been held by it.
    fn classify(&self, epoch: Instant, outages: &[ReplicaKill]) -> LostRequest {
        let held =
            self.before_headers && outages.iter().any(|it| self.start <= it.exited_at && self.end >= it.signaled_at);
        let last =
            outages.iter().filter(|outage| outage.signaled_at <= self.end).map(|outage| outage.signaled_at).max();
        LostRequest {
            explained_by_kill: held,
            detail: self.detail.clone(),
            since_start: self.start - epoch,
            elapsed: self.end - self.start,
            since_kill: last.map(|last| self.start.saturating_duration_since(last)),
        }
    }
}

impl RuleTimeline {
    /// Builds the timeline from the rules read at every replica, and from the times of each generation at the API
    /// server: the earliest at which it was written and, if another followed, the latest.
    ///
    /// A replica is polled every few milliseconds. A generation that came and went between two polls was active between
    /// them. Before the first poll of a replica that had just started, any generation that the API server had meanwhile
    /// may have been active.
    pub(super) fn new(replicas: &[RouterHistory], written: &[(Instant, Option<Instant>)], end: Instant) -> Self {
        let mut rules = Self::default();
        for replica in replicas {
            let intervals: Vec<_> = replica
                .intervals
                .iter()
                .filter_map(|interval| {
                    Some((interval.weights.iter().find_map(|(id, _)| ModelName::parse(id).generation())?, interval))
                })
                .collect();
            if let Some((first, interval)) = intervals.first() {
                let until = interval.until.unwrap_or(end);
                for (generation, (from, to)) in (0..=*first).zip(written) {
                    if to.is_none_or(|to| to >= replica.observed_since) && *from <= until {
                        rules.add_interval(generation, replica.observed_since, until);
                    }
                }
            }
            for (generation, interval) in &intervals {
                rules.add_interval(*generation, interval.from, interval.until.unwrap_or(end));
            }
            for pair in intervals.windows(2) {
                let ((before, ended), (after, began)) = (pair[0], pair[1]);
                for missed in before + 1..after {
                    rules.add_interval(missed, began.from, ended.until.unwrap_or(end));
                }
            }
        }
        rules
    }

    fn add_interval(&mut self, generation: u32, from: Instant, until: Instant) {
        self.intervals.entry(generation).or_default().push((from, until));
    }

    fn was_active(&self, generation: u32, start: Instant, end: Instant) -> bool {
        let intervals = self.intervals.get(&generation);
        intervals.into_iter().flatten().any(|(from, until)| *from <= end && *until >= start)
    }

    fn format_intervals(&self, generation: u32, epoch: Instant) -> String {
        let intervals = self.intervals.get(&generation).into_iter().flatten();
        let message: Vec<_> =
            intervals.map(|(from, until)| format!("{:.4?} to {:.4?}", *from - epoch, *until - epoch)).collect();
        message.join(", ")
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, answered, streamed, canceled, with_rule, without_rule, kills, generations, lost, violations } =
            self;
        let held = lost.iter().filter(|loss| loss.explained_by_kill).count();
        write!(
            f,
            "{sent} requests, {answered} complete responses ({streamed} of them streams), {canceled} canceled by clients, "
        )?;
        write!(f, "{} lost, of which {held} were held by a killed replica; ", lost.len())?;
        write!(
            f,
            "received by the model server: {with_rule} by a rule, {without_rule} without a rule, {} wrong; ",
            violations.len()
        )?;
        write!(f, "{kills} replicas killed, {generations} generations of active rules")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_e2e::rule_recorder::RuleInterval;

    fn router_log(epoch: Instant, since: u64, intervals: &[(u32, u64, Option<u64>)]) -> RouterHistory {
        let at = |millis| epoch + Duration::from_millis(millis);
        let interval = |(generation, from, until): &(u32, u64, Option<u64>)| RuleInterval {
            from: at(*from),
            until: until.map(at),
            sequence: 0,
            weights: vec![(format!("red-{generation}-left"), 1)],
        };
        RouterHistory { observed_since: at(since), gone_at: None, intervals: intervals.iter().map(interval).collect() }
    }

    #[test]
    fn generation_counts_only_while_it_may_have_been_active() {
        let epoch = super::super::now();
        let at = |millis| epoch + Duration::from_millis(millis);
        let written: Vec<_> = (0..5).map(|it| (at(it * 100), Some(at(it * 100 + 101)))).collect();
        let replicas = [
            router_log(epoch, 0, &[(0, 10, Some(120)), (1, 110, Some(220)), (3, 210, None)]),
            //             // This replica was started again at 350.
            router_log(epoch, 350, &[(4, 420, None)]),
        ];
        let rules = RuleTimeline::new(&replicas, &written, at(600));
        for (generation, start, end, right) in [
            (0, 0, 5, true),
            (0, 115, 130, true),
            (0, 121, 130, false),
            (1, 90, 100, false),
            (1, 221, 230, false),
            // No poll observed it: it came and went between two polls.
            (2, 212, 215, true),
            (2, 221, 300, false),
            (3, 500, 510, true),
            // The second replica may have had 3 or 4 before its first poll.
            (4, 360, 370, true),
            (5, 500, 510, false),
        ] {
            assert_eq!(rules.was_active(generation, at(start), at(end)), right, "{generation} {start} {end}");
        }
    }

    #[test]
    fn kill_explains_only_requests_held_before_headers() {
        let epoch = super::super::now();
        let at = |millis| epoch + Duration::from_millis(millis);
        let outages = [ReplicaKill { signaled_at: at(100), exited_at: at(110) }];
        for (start, end, before_headers, held) in [
            (90, 120, true, true),
            (105, 120, true, true),
            (111, 130, true, false),
            (80, 99, true, false),
            (90, 120, false, false),
        ] {
            let ledger = SoakLedger::new(epoch);
            ledger.record_failure(at(start), at(end), before_headers, String::new());
            let report = ledger.report(&RuleTimeline::default(), &outages);
            assert_eq!(report.lost[0].explained_by_kill, held, "{start} {end} {before_headers}");
        }
    }
}
