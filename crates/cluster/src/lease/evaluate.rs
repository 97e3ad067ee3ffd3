//! Pure decision about an observed Lease.

use std::time::Duration;
use tokio::time::Instant;

/// One version of a Lease, and since when it has been observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObservedLease {
    /// When this version was observed first, by the local clock.
    pub(super) unchanged_since: Instant,

    pub(super) version: String,
    /// Identity of the holder; empty if the Lease is free.
    pub(super) holder: String,
    /// Time for which the holder keeps the Lease without a renewal.
    pub(super) duration: Duration,
}

/// Next step of an elector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseAction {
    /// The Lease does not exist, is free, or has expired.
    Acquire,
    /// This process holds the Lease.
    Renew,
    /// Another process holds the Lease until this time, unless it is renewed.
    Wait(Instant),
}

/// Decides what `identity` does about the Lease at `now`.
pub(super) fn evaluate(observed: Option<&ObservedLease>, identity: &str, now: Instant) -> LeaseAction {
    let Some(observed) = observed else { return LeaseAction::Acquire };
    if observed.holder == identity {
        return LeaseAction::Renew;
    }
    let end = observed.unchanged_since + observed.duration;
    if observed.holder.is_empty() || end <= now { LeaseAction::Acquire } else { LeaseAction::Wait(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, at: Instant) -> ObservedLease {
        ObservedLease { unchanged_since: at, version: "1".to_owned(), holder: holder.to_owned(), duration: TERM }
    }

    #[tokio::test]
    async fn missing_or_free_lease_is_acquired() {
        let now = Instant::now();
        assert_eq!(evaluate(None, "a", now), LeaseAction::Acquire);
        assert_eq!(evaluate(Some(&held_by("", now)), "a", now), LeaseAction::Acquire);
    }

    #[tokio::test]
    async fn own_lease_is_renewed_at_any_age() {
        let now = Instant::now();
        assert_eq!(evaluate(Some(&held_by("a", now)), "a", now + TERM * 9), LeaseAction::Renew);
    }

    #[tokio::test]
    async fn other_lease_is_acquired_after_its_whole_term() {
        let now = Instant::now();
        let lease = held_by("b", now);
        assert_eq!(evaluate(Some(&lease), "a", now), LeaseAction::Wait(now + TERM));
        let almost = now + TERM - Duration::from_millis(1);
        assert_eq!(evaluate(Some(&lease), "a", almost), LeaseAction::Wait(now + TERM));
        assert_eq!(evaluate(Some(&lease), "a", now + TERM), LeaseAction::Acquire);
    }
}
