//! Formats durations for people.

use jiff::Timestamp;

/// Formats the time from `since` to `now` in its two largest units; `0s` if `since` is in the future.
pub(super) fn format_elapsed(since: Timestamp, now: Timestamp) -> String {
    format_seconds(now.as_second() - since.as_second())
}

/// Formats seconds in their two largest units: 90 is `1m30s`.
pub(super) fn format_seconds(seconds: i64) -> String {
    let total = seconds.max(0);
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_their_two_largest_units() {
        for (seconds, expected) in
            [(-3, "0s"), (0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3661, "1h01m"), (90_000, "1d01h")]
        {
            assert_eq!(format_seconds(seconds), expected);
        }
    }
}
