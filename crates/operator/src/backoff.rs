//! Exponential backoff for failed reconciles.

use std::time::Duration;

/// Delays that double with each failure, from `initial` up to `max`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequeueBackoff {
    initial: Duration,
    max: Duration,
}

impl Default for RequeueBackoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

impl RequeueBackoff {
    /// Returns the delay after `failures` consecutive failures.
    ///
    /// `jitter`, clamped to 0..=1, shortens the delay by up to a half, so that keys that failed together are retried
    /// at different times.
    pub(crate) fn delay_after(self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.initial.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let backoff = RequeueBackoff::default();
        let waits: Vec<u128> =
            [1, 2, 3, 9, 10, 40, u32::MAX].map(|failures| backoff.delay_after(failures, 0.0).as_millis()).to_vec();
        assert_eq!(waits, [100, 200, 400, 25_600, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn jitter_shortens_delay_by_up_to_half() {
        assert_eq!(RequeueBackoff::default().delay_after(1, 1.0), Duration::from_millis(50));
        assert_eq!(RequeueBackoff::default().delay_after(1, 7.0), Duration::from_millis(50));
    }
}
