//! How times, spans and lists are written in messages.

use jiff::{SignedDuration, Timestamp, Unit};
use rollora_api::{duration::GatewayDuration, rewrite::PoolRef};
use std::time::Duration;

/// A time to the second.
pub(crate) fn time(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

/// A span as the Gateway API writes it, to the second from one second up.
pub(crate) fn duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let rounded = if millis < 1000 { millis } else { millis.div_ceil(1000) * 1000 };
    GatewayDuration::from_millis(rounded).to_string()
}

/// `a, b, c and 4 more`.
pub(crate) fn list<T: AsRef<str>>(items: &[T]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A pool that serves nobody.
pub(crate) fn no_ready_servers(pool: &PoolRef) -> String {
    format!("no server of the pool {} is Ready: see its pods", pool.name)
}

/// `at` later by `span`; the end of time where that is too far.
pub(crate) fn after(at: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| at.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

/// How long `earlier` is ago; nothing where it is not over yet.
pub(crate) fn since(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or_default()
}
