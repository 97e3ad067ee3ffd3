//! When a target was last used, and by how many requests it is used now: what decides whether it is quiet.
//!
//! Kept by the target's name, over every change of rules, also for targets that have left the rules: a retired
//! adapter may still be asked for by its own name.

use arc_swap::ArcSwap;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

/// Targets outside of all rules that are remembered, the latest used first.
const MAX_UNUSED_TARGETS: usize = 1000;

const NEVER: i64 = i64::MIN;

/// The use of one target.
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

    /// The last use; `now` while there are requests in flight.
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

/// The use of all targets that a rule has ever named, as far as they are remembered.
#[derive(Debug, Default)]
pub(crate) struct UsageRegistry {
    current: ArcSwap<UsageByTarget>,
}

impl UsageRegistry {
    /// Begins a change; there is one writer at a time.
    pub(crate) fn begin_update(&self) -> UsageUpdate {
        UsageUpdate { known: self.current.load_full(), added: UsageByTarget::new() }
    }

    /// Ends a change. Targets that nothing but the maps holds any more are forgotten from the oldest on.
    pub(crate) fn commit(&self, edit: UsageUpdate) {
        if edit.added.is_empty() {
            return;
        }
        let mut targets = UsageByTarget::clone(&edit.known);
        // Those are held by the map that is in force, by this one, and by a rule or a request or nobody.
        let is_departed = |usage: &Arc<TargetUsage>| Arc::strong_count(usage) <= 2;
        let departed = targets.values().filter(|usage| is_departed(usage));
        let mut last: Vec<i64> = departed.map(|usage| usage.last_used.load(Ordering::Relaxed)).collect();
        if last.len() > MAX_UNUSED_TARGETS {
            last.sort_unstable_by(|one, other| other.cmp(one));
            let oldest_kept = last.get(MAX_UNUSED_TARGETS - 1).copied().unwrap_or(NEVER);
            targets.retain(|_, usage| usage.last_used.load(Ordering::Relaxed) >= oldest_kept || !is_departed(usage));
        }
        targets.extend(edit.added);
        self.current.store(Arc::new(targets));
    }

    pub(crate) fn find(&self, target: &str) -> Option<Arc<TargetUsage>> {
        self.current.load().get(target).cloned()
    }

    /// The last uses of all targets that were used.
    pub(crate) fn report(&self, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let targets = self.current.load();
        targets.iter().filter_map(|(name, usage)| Some((name.to_string(), usage.last_used(now)?))).collect()
    }
}

/// A change of the targets that are remembered.
#[derive(Debug)]
pub(crate) struct UsageUpdate {
    known: Arc<UsageByTarget>,
    added: UsageByTarget,
}

impl UsageUpdate {
    /// The use of `target`, from now on remembered.
    pub(crate) fn get_or_insert(&mut self, target: &Arc<str>) -> Arc<TargetUsage> {
        let usage = match self.known.get(target) {
            Some(usage) => usage,
            None => self.added.entry(Arc::clone(target)).or_insert_with(|| Arc::new(TargetUsage::new())),
        };
        Arc::clone(usage)
    }
}
