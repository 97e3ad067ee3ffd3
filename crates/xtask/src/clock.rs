//! The only module of this program that reads the clock.

use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "xtask is a shell that measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Formats a duration for people: `0.4 s`, `37 s`, `2 min 5 s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 60.0 {
        format!("{seconds:.0} s")
    } else {
        let whole = duration.as_secs();
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_formatted_for_people() {
        for (milliseconds, expected) in
            [(400, "0.4 s"), (37_000, "37 s"), (125_000, "2 min 5 s"), (3_600_000, "60 min 0 s")]
        {
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), expected);
        }
    }
}
