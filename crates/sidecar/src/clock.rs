//! The one clock of a sidecar: it goes forward whatever happens to the machine's.

use jiff::Timestamp;
use tokio::time::Instant;

/// The time of the start, and how long ago that is by a clock that nobody sets.
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

    /// The instant to sleep until for `time` to have come.
    pub(crate) fn instant(&self, time: Timestamp) -> Instant {
        self.start_instant + time.duration_since(self.start_time).unsigned_abs()
    }
}
