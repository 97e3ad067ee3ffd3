//! Exponential backoff. Pure: the jitter is an argument.

use std::time::Duration;

/// A delay that doubles with each failure in a row, between two limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first failure; 1 s by default.
    pub initial: Duration,
    /// The longest delay, jitter included; 5 min by default.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_mins(5) }
    }
}

impl Backoff {
    /// Returns the delay after the `failures`-th failure in a row. `jitter` (0 to 1) lengthens it by up to a quarter,
    /// so that servers which failed together do not retry together.
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let delay = self.initial.saturating_mul(1 << doublings).min(self.max);
        delay.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_from_one_second_to_five_minutes() {
        let delays: Vec<_> = (0..=11).map(|failures| Backoff::default().delay(failures, 0.0).as_secs()).collect();
        assert_eq!(delays, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn jitter_adds_up_to_a_quarter_within_the_limit() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, 1.0), Duration::from_secs(5));
        assert_eq!(backoff.delay(u32::MAX, 1.0), backoff.max);
    }
}
