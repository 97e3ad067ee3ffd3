//! How long a container that ended waits until it is started again. Pure.

use std::time::Duration;

/// A container that ran so long begins anew.
const LONG: Duration = Duration::from_mins(10);

/// The waiting times: none after the first end, then `first`, doubled each time up to `longest`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the second end.
    pub first: Duration,
    /// Never longer.
    pub longest: Duration,
}

/// What a kubelet does.
impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(10), longest: Duration::from_mins(5) }
    }
}

/// The ends of one container so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    backoff: Backoff,
    next: Duration,
}

impl Ends {
    pub(super) fn none(backoff: Backoff) -> Self {
        Self { backoff, next: Duration::ZERO }
    }

    /// It ended after it ran so long.
    pub(super) fn pause_after(&mut self, ran: Duration) -> Duration {
        if ran >= LONG {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = if pause.is_zero() { self.backoff.first } else { pause.saturating_mul(2) };
        self.next = self.next.min(self.backoff.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_others_wait_twice_as_long_each_up_to_five_minutes() {
        let mut ends = Ends::none(Backoff::default());
        let pauses: Vec<_> = (0..8).map(|_| ends.pause_after(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(ends.pause_after(LONG), Duration::ZERO);
    }
}
