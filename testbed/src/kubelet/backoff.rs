//! How long a container waits before it is restarted. Pure.

use std::time::Duration;

/// The delay starts over after a container has run for this long.
const RESET_AFTER: Duration = Duration::from_mins(10);

/// Delays before restarts: none after the first exit, then [`initial`](Self::initial), doubled each time up to
/// [`max`](Self::max).
#[derive(Debug, Clone, Copy)]
pub struct RestartBackoff {
    /// Delay after the second exit.
    pub initial: Duration,
    /// Upper bound of the delay.
    pub max: Duration,
}

/// The delays of a real kubelet.
impl Default for RestartBackoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(10), max: Duration::from_mins(5) }
    }
}

/// Backoff of a single container.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackoffState {
    backoff: RestartBackoff,
    next_delay: Duration,
}

impl BackoffState {
    pub(super) fn new(backoff: RestartBackoff) -> Self {
        Self { backoff, next_delay: Duration::ZERO }
    }

    /// Returns the delay before the next restart of a container that ran for `ran`.
    pub(super) fn delay_after(&mut self, ran: Duration) -> Duration {
        if ran >= RESET_AFTER {
            self.next_delay = Duration::ZERO;
        }
        let delay = self.next_delay;
        self.next_delay = if delay.is_zero() { self.backoff.initial } else { delay.saturating_mul(2) };
        self.next_delay = self.next_delay.min(self.backoff.max);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_restart_is_immediate_then_delay_doubles_to_max() {
        let mut backoff = BackoffState::new(RestartBackoff::default());
        let delays: Vec<_> = (0..8).map(|_| backoff.delay_after(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.delay_after(RESET_AFTER), Duration::ZERO);
    }
}
