//! Which key is reconciled when: every key once, never twice at a time, at once when something happened to it. What a
//! person asked for goes before everything else that is due.
//!
//! Invariant: what happens to a key while it is reconciled leads to another reconcile after it.

use crate::{backoff::RequeueBackoff, ports::RolloutKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Keys and when they are due.
#[derive(Debug, Default)]
pub(crate) struct WorkQueue {
    entries: BTreeMap<RolloutKey, QueueEntry>,
    /// Those that are due some time and do not run, by when; wishes first.
    due: BTreeSet<(Priority, Instant, RolloutKey)>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A person waits for it.
    Interactive,
    /// In the order in which things happened.
    #[default]
    Normal,
}

#[derive(Debug, Default)]
struct QueueEntry {
    priority: Priority,
    /// When it is due; none until something happens.
    due: Option<Instant>,
    /// When something happened to it last.
    last_event: Option<Instant>,
    running: bool,
    /// Something happened since the reconcile that runs began.
    dirty: bool,
    failures: u32,
    /// Tells the reconcile that runs.
    interrupt: Arc<Notify>,
}

impl WorkQueue {
    /// Something happened to this key.
    pub(crate) fn enqueue(&mut self, key: &RolloutKey, turn: Priority, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(due) = entry.due {
            self.due.remove(&(entry.priority, due, key.clone()));
        }
        entry.priority = entry.priority.min(turn);
        entry.last_event = Some(now);
        if entry.running {
            entry.due = Some(now);
            entry.dirty = true;
            entry.interrupt.notify_one();
        } else {
            self.schedule(key, Some(now));
        }
    }

    /// Takes the key that has been due for longest, to be reconciled now, and when something happened to it last.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(RolloutKey, Instant, Arc<Notify>)> {
        self.due.first().filter(|(_, due, _)| *due <= now)?;
        let (_, _, key) = self.due.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.priority = Priority::Normal;
        // A wake that nobody heard was meant for an earlier reconcile.
        entry.interrupt = Arc::default();
        (entry.due, entry.running, entry.dirty) = (None, true, false);
        Some((key, entry.last_event.unwrap_or(now), Arc::clone(&entry.interrupt)))
    }

    /// Whether a person waits for one that is due.
    pub(crate) fn has_interactive(&self) -> bool {
        self.due.first().is_some_and(|(turn, ..)| *turn == Priority::Interactive)
    }

    /// Waits for the next due time; for ever where there is none.
    pub(crate) async fn wait_until_due(&self) {
        match self.due.first() {
            Some((_, due, _)) => tokio::time::sleep_until(*due).await,
            None => std::future::pending().await,
        }
    }

    /// The reconcile of this key ended well; it is due again at `due`.
    pub(crate) fn requeue_at(&mut self, key: &RolloutKey, due: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.running = false;
            entry.failures = 0;
            let due = if entry.dirty { entry.due } else { due };
            self.schedule(key, due);
        }
    }

    /// The reconcile of this key failed. Returns how long it waits, unless something happened meanwhile.
    pub(crate) fn requeue_with_backoff(&mut self, key: &RolloutKey, backoff: RequeueBackoff, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(key) else { return Duration::ZERO };
        entry.running = false;
        entry.failures = entry.failures.saturating_add(1);
        let delay = backoff.delay_after(entry.failures, rand::random());
        let due = if entry.dirty { entry.due } else { Some(now + delay) };
        self.schedule(key, due);
        delay
    }

    /// A key that does not run is due then.
    fn schedule(&mut self, key: &RolloutKey, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.due = due;
        self.due.extend(due.map(|due| (entry.priority, due, key.clone())));
    }

    /// The key is gone; it comes back when something happens to it.
    pub(crate) fn forget(&mut self, key: &RolloutKey) {
        if self.entries.get(key).is_some_and(|entry| entry.dirty) {
            self.requeue_at(key, None);
        } else {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RolloutKey {
        RolloutKey { namespace: None, name: name.to_owned() }
    }

    fn names(queue: &mut WorkQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop_due(now).map(|(key, ..)| key.name)).collect()
    }

    #[tokio::test]
    async fn a_key_is_taken_once_however_often_it_was_woken() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for name in ["a", "b", "a", "a"] {
            queue.enqueue(&key(name), Priority::Normal, now);
        }
        assert_eq!(names(&mut queue, now), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_key_that_is_woken_while_it_runs_is_told_and_runs_again_after_it() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        let (_, _, wake) = queue.pop_due(now).unwrap();
        queue.enqueue(&key("a"), Priority::Normal, now);
        wake.notified().await;
        assert!(queue.pop_due(now).is_none(), "it runs still");
        queue.requeue_at(&key("a"), None);
        assert_eq!(names(&mut queue, now), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_because_time_goes_by_is_no_news() {
        let (mut queue, start) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, start);
        let later = start + Duration::from_secs(1);
        for now in [start, later] {
            assert_eq!(queue.pop_due(now).unwrap().1, start);
            queue.requeue_at(&key("a"), Some(later));
        }
        queue.enqueue(&key("a"), Priority::Normal, later);
        assert_eq!(queue.pop_due(later).unwrap().1, later);
    }

    #[tokio::test]
    async fn what_a_person_waits_for_goes_first_also_where_it_was_in_the_queue_or_running() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.enqueue(&key(name), Priority::Normal, now);
        }
        assert!(!queue.has_interactive());
        queue.enqueue(&key("b"), Priority::Interactive, now);
        assert!(queue.has_interactive());
        assert_eq!(names(&mut queue, now), ["b", "a", "c"]);
        queue.requeue_at(&key("a"), Some(now));
        queue.enqueue(&key("c"), Priority::Interactive, now);
        // What happens after it does not take its turn away.
        queue.enqueue(&key("c"), Priority::Normal, now);
        queue.requeue_at(&key("c"), None);
        assert_eq!(names(&mut queue, now), ["c", "a"]);
        queue.requeue_at(&key("c"), Some(now));
        assert!(!queue.has_interactive(), "it was looked at");
    }

    #[tokio::test]
    async fn a_key_rests_until_it_is_due() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        assert_eq!(names(&mut queue, now), ["a"]);
        let due = now + Duration::from_secs(1);
        queue.requeue_at(&key("a"), Some(due));
        assert!(queue.pop_due(now).is_none());
        assert_eq!(names(&mut queue, due), ["a"]);
    }

    #[tokio::test]
    async fn failures_wait_longer_and_a_success_forgets_them() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        let fail = |queue: &mut WorkQueue| {
            queue.enqueue(&key("a"), Priority::Normal, now);
            queue.pop_due(now).unwrap();
            queue.requeue_with_backoff(&key("a"), RequeueBackoff::default(), now).as_millis()
        };
        assert!((50..=100).contains(&fail(&mut queue)));
        assert!((100..=200).contains(&fail(&mut queue)));
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.pop_due(now).unwrap();
        queue.requeue_at(&key("a"), None);
        assert!((50..=100).contains(&fail(&mut queue)));
    }

    #[tokio::test]
    async fn a_forgotten_key_comes_back_when_something_happens_to_it() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.pop_due(now).unwrap();
        queue.forget(&key("a"));
        assert!(names(&mut queue, now).is_empty());
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.pop_due(now).unwrap();
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.forget(&key("a"));
        assert_eq!(names(&mut queue, now), ["a"], "it was made again while it was being forgotten");
    }
}
