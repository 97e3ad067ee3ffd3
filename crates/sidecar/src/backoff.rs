//! How long to wait after a failure. Pure: the jitter comes in as an argument.

use std::time::Duration;

/// Waits that double with each failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub initial: Duration,
    /// Never longer than this.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_mins(5) }
    }
}

impl Backoff {
    /// The wait after the `failures`-th failure in a row, up to a quarter longer by `jitter` (0 to 1), so that servers
    /// which failed together do not come back together.
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let wait = self.initial.saturating_mul(1 << doublings).min(self.max);
        wait.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_second_to_five_minutes() {
        let waits: Vec<_> = (0..=11).map(|failures| Backoff::default().delay(failures, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn jitter_adds_up_to_a_quarter_and_never_passes_the_limit() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, 1.0), Duration::from_secs(5));
        assert_eq!(backoff.delay(u32::MAX, 1.0), backoff.max);
    }
}
