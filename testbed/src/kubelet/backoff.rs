//! How long a container that ended waits until it is started again. Pure.

use std::time::Duration;

/// A container that ran so long begins anew.
const RESET_AFTER: Duration = Duration::from_mins(10);

/// The waiting times: none after the first end, then `first`, doubled each time up to `longest`.
#[derive(Debug, Clone, Copy)]
pub struct RestartBackoff {
    /// After the second end.
    pub initial: Duration,
    /// Never longer.
    pub max: Duration,
}

/// What a kubelet does.
impl Default for RestartBackoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(10), max: Duration::from_mins(5) }
    }
}

/// The ends of one container so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackoffState {
    backoff: RestartBackoff,
    next_delay: Duration,
}

impl BackoffState {
    pub(super) fn new(backoff: RestartBackoff) -> Self {
        Self { backoff, next_delay: Duration::ZERO }
    }

    /// It ended after it ran so long.
    pub(super) fn delay_after(&mut self, ran: Duration) -> Duration {
        if ran >= RESET_AFTER {
            self.next_delay = Duration::ZERO;
        }
        let pause = self.next_delay;
        self.next_delay = if pause.is_zero() { self.backoff.initial } else { pause.saturating_mul(2) };
        self.next_delay = self.next_delay.min(self.backoff.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_others_wait_twice_as_long_each_up_to_five_minutes() {
        let mut ends = BackoffState::new(RestartBackoff::default());
        let pauses: Vec<_> = (0..8).map(|_| ends.delay_after(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(ends.delay_after(RESET_AFTER), Duration::ZERO);
    }
}
