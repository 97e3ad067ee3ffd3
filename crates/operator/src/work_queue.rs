//! Queue of the keys to reconcile. Each key is queued once and reconciled by one task at a time; a change makes it due
//! immediately, and keys with a pending intent come first.
//!
//! Invariant: a change of a key while it is being reconciled leads to another reconcile afterwards.

use crate::{backoff::RequeueBackoff, ports::RolloutKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Keys and the times at which they are due.
#[derive(Debug, Default)]
pub(crate) struct WorkQueue {
    entries: BTreeMap<RolloutKey, QueueEntry>,
    /// Keys that have a due time and are not running, ordered by priority, then by due time.
    due: BTreeSet<(Priority, Instant, RolloutKey)>,
}

/// Order in which due keys are reconciled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A person waits for the result of an intent.
    Interactive,
    /// No intent is pending; keys are ordered by their due time.
    #[default]
    Normal,
}

#[derive(Debug, Default)]
struct QueueEntry {
    priority: Priority,
    /// When the key is due; `None` if it waits for a change.
    due: Option<Instant>,
    /// When the key changed last.
    last_event: Option<Instant>,
    running: bool,
    /// Whether the key changed since its running reconcile began.
    dirty: bool,
    failures: u32,
    /// Wakes the running reconcile.
    interrupt: Arc<Notify>,
}

impl WorkQueue {
    /// Makes a key due immediately because it changed.
    pub(crate) fn enqueue(&mut self, key: &RolloutKey, priority: Priority, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(due) = entry.due {
            self.due.remove(&(entry.priority, due, key.clone()));
        }
        entry.priority = entry.priority.min(priority);
        entry.last_event = Some(now);
        if entry.running {
            entry.due = Some(now);
            entry.dirty = true;
            entry.interrupt.notify_one();
        } else {
            self.schedule(key, Some(now));
        }
    }

    /// Takes the first due key for a reconcile. Returns it with the time of its last change and its wake-up signal.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(RolloutKey, Instant, Arc<Notify>)> {
        self.due.first().filter(|(_, due, _)| *due <= now)?;
        let (_, _, key) = self.due.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.priority = Priority::Normal;
        // An unconsumed wake-up was meant for an earlier reconcile.
        entry.interrupt = Arc::default();
        (entry.due, entry.running, entry.dirty) = (None, true, false);
        Some((key, entry.last_event.unwrap_or(now), Arc::clone(&entry.interrupt)))
    }

    /// Returns whether a key with a pending intent is due.
    pub(crate) fn has_interactive(&self) -> bool {
        self.due.first().is_some_and(|(priority, ..)| *priority == Priority::Interactive)
    }

    /// Waits until the next key is due; never returns if no key has a due time.
    pub(crate) async fn wait_until_due(&self) {
        match self.due.first() {
            Some((_, due, _)) => tokio::time::sleep_until(*due).await,
            None => std::future::pending().await,
        }
    }

    /// Ends a successful reconcile of this key; it is due again at `due`, or earlier if it changed meanwhile.
    pub(crate) fn requeue_at(&mut self, key: &RolloutKey, due: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.running = false;
            entry.failures = 0;
            let due = if entry.dirty { entry.due } else { due };
            self.schedule(key, due);
        }
    }

    /// Ends a failed reconcile of this key. Returns the delay of the retry; if the key changed meanwhile, it is due
    /// without this delay.
    pub(crate) fn requeue_with_backoff(&mut self, key: &RolloutKey, backoff: RequeueBackoff, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(key) else { return Duration::ZERO };
        entry.running = false;
        entry.failures = entry.failures.saturating_add(1);
        let delay = backoff.delay_after(entry.failures, rand::random());
        let due = if entry.dirty { entry.due } else { Some(now + delay) };
        self.schedule(key, due);
        delay
    }

    /// Sets the due time of a key that is not running.
    fn schedule(&mut self, key: &RolloutKey, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.due = due;
        self.due.extend(due.map(|due| (entry.priority, due, key.clone())));
    }

    /// Ends the last reconcile of a deleted key; a later change queues it again.
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
    async fn key_is_popped_once_after_many_changes() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for name in ["a", "b", "a", "a"] {
            queue.enqueue(&key(name), Priority::Normal, now);
        }
        assert_eq!(names(&mut queue, now), ["a", "b"]);
    }

    #[tokio::test]
    async fn change_while_running_wakes_and_requeues_key() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        let (_, _, wake) = queue.pop_due(now).unwrap();
        queue.enqueue(&key("a"), Priority::Normal, now);
        wake.notified().await;
        assert!(queue.pop_due(now).is_none(), "the key is still running");
        queue.requeue_at(&key("a"), None);
        assert_eq!(names(&mut queue, now), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn due_time_does_not_count_as_change() {
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
    async fn key_with_intent_is_popped_first_even_if_queued_or_running() {
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
        // A later change without an intent keeps the priority.
        queue.enqueue(&key("c"), Priority::Normal, now);
        queue.requeue_at(&key("c"), None);
        assert_eq!(names(&mut queue, now), ["c", "a"]);
        queue.requeue_at(&key("c"), Some(now));
        assert!(!queue.has_interactive(), "the reconcile consumed the priority");
    }

    #[tokio::test]
    async fn key_is_not_popped_before_it_is_due() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        assert_eq!(names(&mut queue, now), ["a"]);
        let due = now + Duration::from_secs(1);
        queue.requeue_at(&key("a"), Some(due));
        assert!(queue.pop_due(now).is_none());
        assert_eq!(names(&mut queue, due), ["a"]);
    }

    #[tokio::test]
    async fn failures_increase_delay_and_success_resets_it() {
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
    async fn forgotten_key_is_requeued_by_a_change() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.pop_due(now).unwrap();
        queue.forget(&key("a"));
        assert!(names(&mut queue, now).is_empty());
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.pop_due(now).unwrap();
        queue.enqueue(&key("a"), Priority::Normal, now);
        queue.forget(&key("a"));
        assert_eq!(names(&mut queue, now), ["a"], "the key changed while its last reconcile ran");
    }
}
