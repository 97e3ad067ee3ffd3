//! What to do about a Lease as it was seen. Pure.

use std::time::Duration;
use tokio::time::Instant;

/// A Lease, and since when it has been as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObservedLease {
    /// Since when this version is known, by our own clock.
    pub(super) unchanged_since: Instant,
    /// Its version.
    pub(super) version: String,
    /// Who holds it; nobody where empty.
    pub(super) holder: String,
    /// How long its holder holds it without renewing it.
    pub(super) duration: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseAction {
    /// Take it: it is free, or its holder is gone.
    Acquire,
    /// Renew it: it is ours.
    Renew,
    /// Somebody else's; look again then at the latest.
    Wait(Instant),
}

/// What `identity` does about the Lease.
pub(super) fn evaluate(seen: Option<&ObservedLease>, identity: &str, now: Instant) -> LeaseAction {
    let Some(seen) = seen else { return LeaseAction::Acquire };
    if seen.holder == identity {
        return LeaseAction::Renew;
    }
    let end = seen.unchanged_since + seen.duration;
    if seen.holder.is_empty() || end <= now { LeaseAction::Acquire } else { LeaseAction::Wait(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, at: Instant) -> ObservedLease {
        ObservedLease { unchanged_since: at, version: "1".to_owned(), holder: holder.to_owned(), duration: TERM }
    }

    #[tokio::test]
    async fn a_lease_that_is_not_there_or_free_is_taken() {
        let now = Instant::now();
        assert_eq!(evaluate(None, "a", now), LeaseAction::Acquire);
        assert_eq!(evaluate(Some(&held_by("", now)), "a", now), LeaseAction::Acquire);
    }

    #[tokio::test]
    async fn our_own_lease_is_renewed_however_old_it_is() {
        let now = Instant::now();
        assert_eq!(evaluate(Some(&held_by("a", now)), "a", now + TERM * 9), LeaseAction::Renew);
    }

    #[tokio::test]
    async fn another_s_lease_is_taken_when_it_has_not_changed_for_its_whole_term() {
        let now = Instant::now();
        let lease = held_by("b", now);
        assert_eq!(evaluate(Some(&lease), "a", now), LeaseAction::Wait(now + TERM));
        let almost = now + TERM - Duration::from_millis(1);
        assert_eq!(evaluate(Some(&lease), "a", almost), LeaseAction::Wait(now + TERM));
        assert_eq!(evaluate(Some(&lease), "a", now + TERM), LeaseAction::Acquire);
    }
}
