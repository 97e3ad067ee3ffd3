//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// Waits that double from failure to failure.
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
    /// The wait after `failures` failures in a row; `spread`, from 0 to 1, shortens it by up to a half, so that what
    /// failed together is not tried again together.
    pub(crate) fn delay_after(self, failures: u32, spread: f64) -> Duration {
        let doubled = self.initial.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(1.0 - spread.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = RequeueBackoff::default();
        let waits: Vec<u128> =
            [1, 2, 3, 9, 10, 40, u32::MAX].map(|failures| backoff.delay_after(failures, 0.0).as_millis()).to_vec();
        assert_eq!(waits, [100, 200, 400, 25_600, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn spread_shortens_a_wait_by_up_to_a_half() {
        assert_eq!(RequeueBackoff::default().delay_after(1, 1.0), Duration::from_millis(50));
        assert_eq!(RequeueBackoff::default().delay_after(1, 7.0), Duration::from_millis(50));
    }
}
