//! The only module of the simulator that reads the clock.

use jiff::Timestamp;

#[expect(clippy::disallowed_methods, reason = "the simulator is a shell: its responses carry the time of day")]
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// Converts to seconds since the epoch, the unit of vLLM's metrics.
#[expect(clippy::cast_precision_loss, reason = "microseconds since the epoch fit into an f64 until the year 2255")]
pub(super) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

/// Returns the current time in seconds since the epoch.
pub(super) fn unix_now() -> f64 {
    unix_seconds(now())
}
