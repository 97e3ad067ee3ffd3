//! Usage of targets: last use and requests in flight, from which the operator tells whether a retired adapter is idle.
//!
//! Usage is kept by target name across changes of rules, also for targets that left the rules: clients can still
//! request a retired adapter by its own name.

use arc_swap::ArcSwap;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

/// Number of targets outside all rules that are kept, the latest used first.
const MAX_UNUSED_TARGETS: usize = 1000;

const NEVER: i64 = i64::MIN;

/// Usage of one target.
#[derive(Debug)]
pub(crate) struct TargetUsage {
    /// Milliseconds since the epoch.
    last_used: AtomicI64,
    in_flight: AtomicI64,
}

impl TargetUsage {
    fn new() -> Self {
        Self { last_used: AtomicI64::new(NEVER), in_flight: AtomicI64::new(0) }
    }

    pub(crate) fn start_request(&self, now: Timestamp) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.touch(now);
    }

    pub(crate) fn touch(&self, now: Timestamp) {
        self.last_used.fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    pub(crate) fn end_request(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the last use; `now` while requests are in flight. `None` if the target was never used.
    pub(crate) fn last_used(&self, now: Timestamp) -> Option<Timestamp> {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return Some(now);
        }
        match self.last_used.load(Ordering::Relaxed) {
            NEVER => None,
            milliseconds => Timestamp::from_millisecond(milliseconds).ok(),
        }
    }
}

type UsageByTarget = HashMap<Arc<str>, Arc<TargetUsage>>;

/// Usage of all targets that a rule has named, except evicted ones.
#[derive(Debug, Default)]
pub(crate) struct UsageRegistry {
    current: ArcSwap<UsageByTarget>,
}

impl UsageRegistry {
    /// Begins a change. Callers must ensure that there is one writer at a time.
    pub(crate) fn begin_update(&self) -> UsageUpdate {
        UsageUpdate { known: self.current.load_full(), added: UsageByTarget::new() }
    }

    /// Commits a change. Targets that no rule and no request holds any more are evicted, the oldest first.
    pub(crate) fn commit(&self, update: UsageUpdate) {
        if update.added.is_empty() {
            return;
        }
        let mut targets = UsageByTarget::clone(&update.known);
        // An unused entry has two owners: the current map and this copy. A rule or request would be a third one.
        let is_unused = |usage: &Arc<TargetUsage>| Arc::strong_count(usage) <= 2;
        let unused = targets.values().filter(|usage| is_unused(usage));
        let mut last: Vec<i64> = unused.map(|usage| usage.last_used.load(Ordering::Relaxed)).collect();
        if last.len() > MAX_UNUSED_TARGETS {
            last.sort_unstable_by(|one, other| other.cmp(one));
            let oldest_kept = last.get(MAX_UNUSED_TARGETS - 1).copied().unwrap_or(NEVER);
            targets.retain(|_, usage| usage.last_used.load(Ordering::Relaxed) >= oldest_kept || !is_unused(usage));
        }
        targets.extend(update.added);
        self.current.store(Arc::new(targets));
    }

    pub(crate) fn find(&self, target: &str) -> Option<Arc<TargetUsage>> {
        self.current.load().get(target).cloned()
    }

    /// Returns the last use of every target that was used.
    pub(crate) fn report(&self, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let targets = self.current.load();
        targets.iter().filter_map(|(name, usage)| Some((name.to_string(), usage.last_used(now)?))).collect()
    }
}

/// A change to the set of known targets.
#[derive(Debug)]
pub(crate) struct UsageUpdate {
    known: Arc<UsageByTarget>,
    added: UsageByTarget,
}

impl UsageUpdate {
    /// Returns the usage of `target` and adds it if it is new.
    pub(crate) fn get_or_insert(&mut self, target: &Arc<str>) -> Arc<TargetUsage> {
        let usage = match self.known.get(target) {
            Some(usage) => usage,
            None => self.added.entry(Arc::clone(target)).or_insert_with(|| Arc::new(TargetUsage::new())),
        };
        Arc::clone(usage)
    }
}
