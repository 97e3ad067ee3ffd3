//! Rate limiter for background writes. Writes for a pending intent and writes that move traffic are not limited, and
//! must not queue behind hundreds of other writes at the API server either.

use std::time::Duration;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep_until, timeout},
};

/// Maximum number of concurrent background writes.
const MAX_CONCURRENT: usize = 4;
/// Time for which background writes pause when an unlimited write is waiting.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum time for which a background write waits.
const MAX_WAIT: Duration = Duration::from_secs(4);

/// Limits concurrent background writes, and pauses them for more urgent ones.
#[derive(Debug)]
pub(super) struct WriteLimiter {
    permits: Semaphore,
    /// End of the current pause.
    paused_until: watch::Sender<Instant>,
}

impl Default for WriteLimiter {
    fn default() -> Self {
        Self { permits: Semaphore::new(MAX_CONCURRENT), paused_until: watch::Sender::new(Instant::now()) }
    }
}

impl WriteLimiter {
    /// Pauses background writes for a more urgent one.
    pub(super) fn pause_background(&self) {
        self.paused_until.send_replace(Instant::now() + PAUSE);
    }

    /// Waits for a permit. Returns `None` after the maximum wait; the write then happens without one.
    pub(super) async fn acquire(&self) -> Option<SemaphorePermit<'_>> {
        let acquire = async {
            // The semaphore is never closed.
            let permit = self.permits.acquire().await.ok();
            let until = *self.paused_until.borrow();
            // Waits for one pause only, so that a series of intents does not delay background writes for long.
            sleep_until(until).await;
            permit
        };
        timeout(MAX_WAIT, acquire).await.ok().flatten()
    }

    /// Waits for a permit. Returns `None` as soon as `is_urgent` holds, and pauses the other background writes. The
    /// condition is checked whenever a pause begins.
    pub(super) async fn acquire_unless(&self, is_urgent: impl Fn() -> bool + Send) -> Option<SemaphorePermit<'_>> {
        let mut pauses = self.paused_until.subscribe();
        let urgent = async {
            while !is_urgent() {
                // The sender lives as long as the limiter.
                pauses.changed().await.ok();
            }
        };
        tokio::select! {
            biased;
            () = urgent => {
                self.pause_background();
                None
            }
            permit = self.acquire() => permit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test(start_paused = true)]
    async fn background_writes_are_limited_up_to_a_maximum_wait() {
        let limiter = WriteLimiter::default();
        let mut permits = Vec::new();
        for _ in 0..MAX_CONCURRENT {
            permits.push(limiter.acquire().await.unwrap());
        }
        let start = Instant::now();
        assert!(limiter.acquire().await.is_none());
        assert_eq!(start.elapsed(), MAX_WAIT);
        permits.pop();
        assert!(limiter.acquire().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn background_writes_pause_for_an_urgent_write() {
        let limiter = WriteLimiter::default();
        let start = Instant::now();
        limiter.pause_background();
        assert!(limiter.acquire().await.is_some());
        assert_eq!(start.elapsed(), PAUSE);
        assert!(limiter.acquire().await.is_some());
        assert_eq!(start.elapsed(), PAUSE, "the pause is over");
    }

    #[tokio::test(start_paused = true)]
    async fn write_that_becomes_urgent_stops_waiting() {
        let (limiter, is_urgent) = (WriteLimiter::default(), AtomicBool::new(false));
        let mut permits = Vec::new();
        for _ in 0..MAX_CONCURRENT {
            permits.push(limiter.acquire().await.unwrap());
        }
        let start = Instant::now();
        let write = limiter.acquire_unless(|| is_urgent.load(Ordering::Relaxed));
        let intent = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            is_urgent.store(true, Ordering::Relaxed);
            limiter.pause_background();
        };
        let (permit, ()) = tokio::join!(write, intent);
        assert!(permit.is_none());
        assert_eq!(start.elapsed(), Duration::from_millis(10));
    }
}
