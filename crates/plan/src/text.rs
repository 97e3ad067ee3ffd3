//! Formatting of times, durations and lists in messages, and saturating time arithmetic.

use jiff::{SignedDuration, Timestamp, Unit};
use rollora_api::{duration::GatewayDuration, rewrite::PoolRef};
use std::time::Duration;

/// Formats a time, rounded to seconds.
pub(crate) fn time(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

/// Formats a duration as the Gateway API does, rounded up to seconds if it is at least one second.
pub(crate) fn duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let rounded = if millis < 1000 { millis } else { millis.div_ceil(1000) * 1000 };
    GatewayDuration::from_millis(rounded).to_string()
}

/// Joins at most three items, as in `a, b, c and 4 more`.
pub(crate) fn list<T: AsRef<str>>(items: &[T]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The message for a pool without a Ready server.
pub(crate) fn no_ready_servers(pool: &PoolRef) -> String {
    format!("no server of the pool {} is Ready: check the pool's pods", pool.name)
}

/// Returns `at` plus `span`, at most [`Timestamp::MAX`].
pub(crate) fn after(at: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| at.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

/// Returns the time from `earlier` to `now`; zero if `earlier` is in the future.
pub(crate) fn since(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or_default()
}
