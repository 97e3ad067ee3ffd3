//! The clock of a sidecar. It never goes backward, even if the system clock is set.

use jiff::Timestamp;
use tokio::time::Instant;

/// The wall-clock time of the start, plus the monotonic time since then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MonotonicClock {
    start_time: Timestamp,
    start_instant: Instant,
}

impl MonotonicClock {
    #[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the clock")]
    pub(crate) fn start() -> Self {
        Self { start_time: Timestamp::now(), start_instant: Instant::now() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.start_time + self.start_instant.elapsed()
    }

    /// Converts `time` into the instant to sleep until.
    pub(crate) fn instant(&self, time: Timestamp) -> Instant {
        self.start_instant + time.duration_since(self.start_time).unsigned_abs()
    }
}
