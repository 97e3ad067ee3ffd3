//! The line in which writes wait that nobody waits for. What a person asked for, and what moves traffic, waits in none: it
//! must not stand behind hundreds of others at the API server either.

use std::time::Duration;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep_until, timeout},
};

/// So many of these writes go to the API server at once.
const MAX_CONCURRENT: usize = 4;
/// How long the line stands still where somebody waits for a write that is in none.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a write waits at most.
const MAX_WAIT: Duration = Duration::from_secs(4);

/// A line of writes.
#[derive(Debug)]
pub(super) struct WriteLimiter {
    permits: Semaphore,
    /// Until when it stands still.
    paused_until: watch::Sender<Instant>,
}

impl Default for WriteLimiter {
    fn default() -> Self {
        Self { permits: Semaphore::new(MAX_CONCURRENT), paused_until: watch::Sender::new(Instant::now()) }
    }
}

impl WriteLimiter {
    /// Somebody waits for a write: those in the line let it go first.
    pub(super) fn pause_background(&self) {
        self.paused_until.send_replace(Instant::now() + PAUSE);
    }

    /// A place for a write; none where it has waited for long enough.
    pub(super) async fn acquire(&self) -> Option<SemaphorePermit<'_>> {
        let first = async {
            // It is never closed.
            let place = self.permits.acquire().await.ok();
            let until = *self.paused_until.borrow();
            // Once: what people ask for one after the other holds nobody up for long.
            sleep_until(until).await;
            place
        };
        timeout(MAX_WAIT, first).await.ok().flatten()
    }

    /// The same; none, too, as soon as somebody waits for this write: all others let it go first. That is looked at whenever
    /// the line is told to stand still.
    pub(super) async fn acquire_unless(&self, awaited: impl Fn() -> bool + Send) -> Option<SemaphorePermit<'_>> {
        let mut told = self.paused_until.subscribe();
        let awaited = async {
            while !awaited() {
                // The other end lives as long as the line.
                told.changed().await.ok();
            }
        };
        tokio::select! {
            biased;
            () = awaited => {
                self.pause_background();
                None
            }
            place = self.acquire() => place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test(start_paused = true)]
    async fn so_many_go_at_once_and_the_next_waits_for_one_of_them_and_not_for_ever() {
        let line = WriteLimiter::default();
        let mut places = Vec::new();
        for _ in 0..MAX_CONCURRENT {
            places.push(line.acquire().await.unwrap());
        }
        let start = Instant::now();
        assert!(line.acquire().await.is_none());
        assert_eq!(start.elapsed(), MAX_WAIT);
        places.pop();
        assert!(line.acquire().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_stands_still_while_somebody_waits_for_another_write() {
        let line = WriteLimiter::default();
        let start = Instant::now();
        line.pause_background();
        assert!(line.acquire().await.is_some());
        assert_eq!(start.elapsed(), PAUSE);
        assert!(line.acquire().await.is_some());
        assert_eq!(start.elapsed(), PAUSE, "it moves again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_somebody_begins_to_wait_for_leaves_the_line() {
        let (line, awaited) = (WriteLimiter::default(), AtomicBool::new(false));
        let mut places = Vec::new();
        for _ in 0..MAX_CONCURRENT {
            places.push(line.acquire().await.unwrap());
        }
        let start = Instant::now();
        let write = line.acquire_unless(|| awaited.load(Ordering::Relaxed));
        let wish = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            awaited.store(true, Ordering::Relaxed);
            line.pause_background();
        };
        let (place, ()) = tokio::join!(write, wish);
        assert!(place.is_none());
        assert_eq!(start.elapsed(), Duration::from_millis(10));
    }
}
