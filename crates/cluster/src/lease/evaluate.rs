//! What to do about a Lease as it was seen. Pure.

use std::time::Duration;
use tokio::time::Instant;

/// A Lease, and since when it has been as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Since when this version is known, by our own clock.
    pub(super) at: Instant,
    /// Its version.
    pub(super) version: String,
    /// Who holds it; nobody where empty.
    pub(super) holder: String,
    /// How long its holder holds it without renewing it.
    pub(super) duration: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Take it: it is free, or its holder is gone.
    Acquire,
    /// Renew it: it is ours.
    Renew,
    /// Somebody else's; look again then at the latest.
    Wait(Instant),
}

/// What `identity` does about the Lease.
pub(super) fn evaluate(seen: Option<&Seen>, identity: &str, now: Instant) -> Act {
    let Some(seen) = seen else { return Act::Acquire };
    if seen.holder == identity {
        return Act::Renew;
    }
    let end = seen.at + seen.duration;
    if seen.holder.is_empty() || end <= now { Act::Acquire } else { Act::Wait(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, at: Instant) -> Seen {
        Seen { at, version: "1".to_owned(), holder: holder.to_owned(), duration: TERM }
    }

    #[tokio::test]
    async fn a_lease_that_is_not_there_or_free_is_taken() {
        let now = Instant::now();
        assert_eq!(evaluate(None, "a", now), Act::Acquire);
        assert_eq!(evaluate(Some(&held_by("", now)), "a", now), Act::Acquire);
    }

    #[tokio::test]
    async fn our_own_lease_is_renewed_however_old_it_is() {
        let now = Instant::now();
        assert_eq!(evaluate(Some(&held_by("a", now)), "a", now + TERM * 9), Act::Renew);
    }

    #[tokio::test]
    async fn another_s_lease_is_taken_when_it_has_not_changed_for_its_whole_term() {
        let now = Instant::now();
        let lease = held_by("b", now);
        assert_eq!(evaluate(Some(&lease), "a", now), Act::Wait(now + TERM));
        let almost = now + TERM - Duration::from_millis(1);
        assert_eq!(evaluate(Some(&lease), "a", almost), Act::Wait(now + TERM));
        assert_eq!(evaluate(Some(&lease), "a", now + TERM), Act::Acquire);
    }
}
