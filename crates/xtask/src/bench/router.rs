//! Cost of the parts of a request in `rollora-router`, from the bench of that crate.

use anyhow::{Context as _, Result};

use super::Measurement;
use crate::process;
use crate::workspace::cargo;

pub(super) fn run() -> Result<Vec<Measurement>> {
    eprintln!("building the router's bench; the first build takes a minute");
    let output = process::capture(&mut cargo(&["bench", "--locked", "-p", "rollora-router", "--bench", "router"])?)?;
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            parse_measurement(line).with_context(|| format!("unexpected output of the router's bench: {line:?}"))
        })
        .collect()
}

/// Parses a line such as `choice among 10,000 rewrites      250 ns`.
fn parse_measurement(line: &str) -> Option<Measurement> {
    let (rest, unit) = line.trim().rsplit_once(char::is_whitespace)?;
    let (what, value) = rest.trim().rsplit_once(char::is_whitespace)?;
    let measurement = Measurement::new("router", what.trim(), value.parse().ok()?, unit);
    Some(match what.trim() {
        "choice among 10,000 rewrites" => measurement.at_most(200.0),
        // The unit is a microsecond, the goal a millisecond.
        "update of one of 10,000 rewrites" => measurement.at_most(1000.0),
        "exchange of 1 MiB in chunks of 16 KiB" => measurement.at_least(1.0),
        _ => measurement,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_a_name_a_value_and_a_unit() {
        let expected = Measurement::new("router", "choice among 10,000 rewrites", 250.0, "ns").at_most(200.0);
        assert!(!expected.meets_goal());
        assert_eq!(parse_measurement("choice among 10,000 rewrites                       250 ns"), Some(expected));
        let slow = parse_measurement("exchange of 1 MiB in chunks of 16 KiB             0.9 GB/s").unwrap();
        assert!(!slow.meets_goal());
        assert_eq!(
            parse_measurement("a whole exchange of 1 KiB  700 ns"),
            Some(Measurement::new("router", "a whole exchange of 1 KiB", 700.0, "ns"))
        );
        for line in ["", "250 ns", "choice ns", "choice many ns"] {
            assert_eq!(parse_measurement(line), None, "{line:?}");
        }
    }
}
