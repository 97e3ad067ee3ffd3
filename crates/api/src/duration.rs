//! Durations in the format of the Gateway API (GEP-2257): `10m`, `1h30m`, `500ms`.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Regular expression of a duration, from GEP-2257.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Duration that is parsed and formatted as in the Gateway API. Range: 0 to about 11 years, the longest duration that
/// can be written with one number per unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayDuration(Duration);

/// Error of a text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write one to four numbers with h, m, s or ms, for example 10m or 1h30m")]
pub struct DurationError(String);

impl GatewayDuration {
    /// Creates a duration from milliseconds, the finest unit of the format.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Creates a duration from whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the value as a [`Duration`].
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl std::str::FromStr for GatewayDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let refused = || DurationError(text.to_owned());
        let (mut rest, mut parts, mut millis) = (text, 0, 0_u64);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at_checked(digits).ok_or_else(refused)?;
            let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
            let (unit, scale) = units.into_iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(refused)?;
            parts += 1;
            if !(1..=5).contains(&digits) || parts > 4 {
                return Err(refused());
            }
            millis += number.parse::<u64>().map_err(|_| refused())? * scale;
            rest = tail.strip_prefix(unit).ok_or_else(refused)?;
        }
        if parts == 0 { Err(refused()) } else { Ok(Self::from_millis(millis)) }
    }
}

impl TryFrom<String> for GatewayDuration {
    type Error = DurationError;
    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<GatewayDuration> for String {
    fn from(duration: GatewayDuration) -> String {
        duration.to_string()
    }
}

impl fmt::Display for GatewayDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

#[cfg(feature = "kube")]
impl schemars::JsonSchema for GatewayDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GatewayDuration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gateway_api_durations_are_parsed() {
        for (text, millis) in [
            ("0s", 0),
            ("0h", 0),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1s1s", 2000),
            ("1m1ms", 60_001),
            ("99999h99999h99999h99999h", 1_439_985_600_000),
        ] {
            assert_eq!(text.parse::<GatewayDuration>(), Ok(GatewayDuration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_rejected_with_an_example() {
        for text in
            ["", "5", "m", "1.5h", "-1s", "1d", "1us", "100000s", "1s1s1s1s1s", " 1s", "1s ", "1 s", "\u{661}s", "1M"]
        {
            let error = text.parse::<GatewayDuration>().unwrap_err();
            assert!(error.to_string().contains("for example 10m"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn formatted_duration_parses_back(millis in 0..360_000_000_000_u64) {
            let duration = GatewayDuration::from_millis(millis);
            let text = duration.to_string();
            prop_assert_eq!(text.parse(), Ok(duration), "{}", text);
        }

        #[test]
        fn texts_that_match_the_pattern_are_parsed(text in "([0-9]{1,5}(h|m|s|ms)){1,4}") {
            prop_assert!(text.parse::<GatewayDuration>().is_ok(), "{}", text);
        }
    }
}
