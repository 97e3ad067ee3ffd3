//! Which key is reconciled when: every key once, never twice at a time, at once when something happened to it. What a
//! person asked for goes before everything else that is due.
//!
//! Invariant: what happens to a key while it is reconciled leads to another reconcile after it.

use crate::{backoff::Backoff, ports::RolloutKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Keys and when they are due.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    keys: BTreeMap<RolloutKey, Entry>,
    /// Those that are due some time and do not run, by when; wishes first.
    due: BTreeSet<(Turn, Instant, RolloutKey)>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// A person waits for it.
    Wish,
    /// In the order in which things happened.
    #[default]
    Ordinary,
}

#[derive(Debug, Default)]
struct Entry {
    turn: Turn,
    /// When it is due; none until something happens.
    due: Option<Instant>,
    /// When something happened to it last.
    news: Option<Instant>,
    running: bool,
    /// Something happened since the reconcile that runs began.
    woken: bool,
    failures: u32,
    /// Tells the reconcile that runs.
    wake: Arc<Notify>,
}

impl Queue {
    /// Something happened to this key.
    pub(crate) fn wake(&mut self, key: &RolloutKey, turn: Turn, now: Instant) {
        let entry = self.keys.entry(key.clone()).or_default();
        if let Some(due) = entry.due {
            self.due.remove(&(entry.turn, due, key.clone()));
        }
        entry.turn = entry.turn.min(turn);
        entry.news = Some(now);
        if entry.running {
            entry.due = Some(now);
            entry.woken = true;
            entry.wake.notify_one();
        } else {
            self.schedule(key, Some(now));
        }
    }

    /// Takes the key that has been due for longest, to be reconciled now, and when something happened to it last.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(RolloutKey, Instant, Arc<Notify>)> {
        self.due.first().filter(|(_, due, _)| *due <= now)?;
        let (_, _, key) = self.due.pop_first()?;
        let entry = self.keys.get_mut(&key)?;
        entry.turn = Turn::Ordinary;
        // A wake that nobody heard was meant for an earlier reconcile.
        entry.wake = Arc::default();
        (entry.due, entry.running, entry.woken) = (None, true, false);
        Some((key, entry.news.unwrap_or(now), Arc::clone(&entry.wake)))
    }

    /// Whether a person waits for one that is due.
    pub(crate) fn has_wish(&self) -> bool {
        self.due.first().is_some_and(|(turn, ..)| *turn == Turn::Wish)
    }

    /// Waits for the next due time; for ever where there is none.
    pub(crate) async fn until_due(&self) {
        match self.due.first() {
            Some((_, due, _)) => tokio::time::sleep_until(*due).await,
            None => std::future::pending().await,
        }
    }

    /// The reconcile of this key ended well; it is due again at `due`.
    pub(crate) fn rest(&mut self, key: &RolloutKey, due: Option<Instant>) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.running = false;
            entry.failures = 0;
            let due = if entry.woken { entry.due } else { due };
            self.schedule(key, due);
        }
    }

    /// The reconcile of this key failed. Returns how long it waits, unless something happened meanwhile.
    pub(crate) fn fail(&mut self, key: &RolloutKey, backoff: Backoff, now: Instant) -> Duration {
        let Some(entry) = self.keys.get_mut(key) else { return Duration::ZERO };
        entry.running = false;
        entry.failures = entry.failures.saturating_add(1);
        let delay = backoff.after(entry.failures, rand::random());
        let due = if entry.woken { entry.due } else { Some(now + delay) };
        self.schedule(key, due);
        delay
    }

    /// A key that does not run is due then.
    fn schedule(&mut self, key: &RolloutKey, due: Option<Instant>) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        entry.due = due;
        self.due.extend(due.map(|due| (entry.turn, due, key.clone())));
    }

    /// The key is gone; it comes back when something happens to it.
    pub(crate) fn forget(&mut self, key: &RolloutKey) {
        if self.keys.get(key).is_some_and(|entry| entry.woken) {
            self.rest(key, None);
        } else {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RolloutKey {
        RolloutKey { namespace: None, name: name.to_owned() }
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.take_due(now).map(|(key, ..)| key.name)).collect()
    }

    #[tokio::test]
    async fn a_key_is_taken_once_however_often_it_was_woken() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "a", "a"] {
            queue.wake(&key(name), Turn::Ordinary, now);
        }
        assert_eq!(names(&mut queue, now), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_key_that_is_woken_while_it_runs_is_told_and_runs_again_after_it() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), Turn::Ordinary, now);
        let (_, _, wake) = queue.take_due(now).unwrap();
        queue.wake(&key("a"), Turn::Ordinary, now);
        wake.notified().await;
        assert!(queue.take_due(now).is_none(), "it runs still");
        queue.rest(&key("a"), None);
        assert_eq!(names(&mut queue, now), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_because_time_goes_by_is_no_news() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), Turn::Ordinary, start);
        let later = start + Duration::from_secs(1);
        for now in [start, later] {
            assert_eq!(queue.take_due(now).unwrap().1, start);
            queue.rest(&key("a"), Some(later));
        }
        queue.wake(&key("a"), Turn::Ordinary, later);
        assert_eq!(queue.take_due(later).unwrap().1, later);
    }

    #[tokio::test]
    async fn what_a_person_waits_for_goes_first_also_where_it_was_in_the_queue_or_running() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.wake(&key(name), Turn::Ordinary, now);
        }
        assert!(!queue.has_wish());
        queue.wake(&key("b"), Turn::Wish, now);
        assert!(queue.has_wish());
        assert_eq!(names(&mut queue, now), ["b", "a", "c"]);
        queue.rest(&key("a"), Some(now));
        queue.wake(&key("c"), Turn::Wish, now);
        // What happens after it does not take its turn away.
        queue.wake(&key("c"), Turn::Ordinary, now);
        queue.rest(&key("c"), None);
        assert_eq!(names(&mut queue, now), ["c", "a"]);
        queue.rest(&key("c"), Some(now));
        assert!(!queue.has_wish(), "it was looked at");
    }

    #[tokio::test]
    async fn a_key_rests_until_it_is_due() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), Turn::Ordinary, now);
        assert_eq!(names(&mut queue, now), ["a"]);
        let due = now + Duration::from_secs(1);
        queue.rest(&key("a"), Some(due));
        assert!(queue.take_due(now).is_none());
        assert_eq!(names(&mut queue, due), ["a"]);
    }

    #[tokio::test]
    async fn failures_wait_longer_and_a_success_forgets_them() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let fail = |queue: &mut Queue| {
            queue.wake(&key("a"), Turn::Ordinary, now);
            queue.take_due(now).unwrap();
            queue.fail(&key("a"), Backoff::default(), now).as_millis()
        };
        assert!((50..=100).contains(&fail(&mut queue)));
        assert!((100..=200).contains(&fail(&mut queue)));
        queue.wake(&key("a"), Turn::Ordinary, now);
        queue.take_due(now).unwrap();
        queue.rest(&key("a"), None);
        assert!((50..=100).contains(&fail(&mut queue)));
    }

    #[tokio::test]
    async fn a_forgotten_key_comes_back_when_something_happens_to_it() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), Turn::Ordinary, now);
        queue.take_due(now).unwrap();
        queue.forget(&key("a"));
        assert!(names(&mut queue, now).is_empty());
        queue.wake(&key("a"), Turn::Ordinary, now);
        queue.take_due(now).unwrap();
        queue.wake(&key("a"), Turn::Ordinary, now);
        queue.forget(&key("a"));
        assert_eq!(names(&mut queue, now), ["a"], "it was made again while it was being forgotten");
    }
}
