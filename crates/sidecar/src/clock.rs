//! The one clock of a sidecar: it goes forward whatever happens to the machine's.

use jiff::Timestamp;
use tokio::time::Instant;

/// The time of the start, and how long ago that is by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Timestamp,
    started: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the clock")]
    pub(crate) fn start() -> Self {
        Self { origin: Timestamp::now(), started: Instant::now() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.origin + self.started.elapsed()
    }

    /// The instant to sleep until for `time` to have come.
    pub(crate) fn instant(&self, time: Timestamp) -> Instant {
        self.started + time.duration_since(self.origin).unsigned_abs()
    }
}
