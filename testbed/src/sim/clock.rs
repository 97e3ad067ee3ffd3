//! The one place where the simulator reads the clock.

use jiff::Timestamp;

/// Now.
#[expect(clippy::disallowed_methods, reason = "the simulator is a shell: what it answers carries the time of day")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// Seconds since the epoch, as vLLM's metrics write them.
#[expect(clippy::cast_precision_loss, reason = "microseconds since the epoch fit into an f64 until the year 2255")]
pub(super) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

/// Now, in seconds since the epoch.
pub(super) fn unix_now() -> f64 {
    unix_seconds(now())
}
