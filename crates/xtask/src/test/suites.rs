//! The tests themselves.

use std::process::Command;

use anyhow::{Result, bail};

use super::Outcome;
use super::parts::Fetching;
use crate::process;
use crate::workspace::cargo;

/// Set for the repetitions and the long schedules.
const LONG: &str = "ROLLORA_LONG";
/// What property tests begin with; the same in every short run, see `.cargo/config.toml`.
const SEED: &str = "PROPTEST_RNG_SEED";

/// Runs all tests; says how they ended, and what was not there for some of them.
pub(super) fn run(long: bool, fetching: Fetching<'_>) -> Vec<(&'static str, Outcome)> {
    // With the targets and features of the tests, so that nothing is compiled twice; and all programs, because tests
    // start the programs of other packages.
    let built = cargo(&["build", "--locked", "--workspace", "--all-features", "--all-targets"])
        .and_then(|mut command| process::run_ok(&mut command));
    // Tests that measure time have the processors for themselves.
    let parts = fetching.wait();
    let mut outcomes = vec![("tests", Outcome::from(built))];
    if let [(_, tests @ Outcome::Passed)] = outcomes.as_mut_slice() {
        // Any number that differs from run to run.
        let seed = std::process::id().to_string();
        if long {
            println!("property tests begin with {SEED}={seed}: set it for `cargo test` to have the same cases again");
        }
        let set = |command: &mut Command| {
            parts.tell(command);
            if long {
                command.env(LONG, "1").env(SEED, &seed);
            }
        };
        *tests = suite(set).into();
    }
    outcomes.extend(parts.missing());
    outcomes
}

/// Runs `cargo test` with its output in sight, and names the tests that failed.
fn suite(set: impl Fn(&mut Command)) -> Result<()> {
    let mut command = cargo(&["test", "--locked", "--no-fail-fast", "--workspace", "--all-features"])?;
    set(&mut command);
    let mut failed = Vec::new();
    let status = process::lines(&mut command, |line| {
        failed.extend(failed_test(line).map(str::to_owned));
        print!("{line}");
    })?;
    match failed.as_slice() {
        [] if status.success() => Ok(()),
        [] => bail!("`{}` ended with {}", process::line(&command), process::ending(status)),
        names => bail!("{} of `{}` failed: {}", names.len(), process::line(&command), names.join(", ")),
    }
}

/// The name of the test that a line of output says has failed.
fn failed_test(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_known_by_their_lines() {
        for (line, expected) in [
            ("test sse::a_cut_event_is_kept ... FAILED\n", Some("sse::a_cut_event_is_kept")),
            ("test sse::a_cut_event_is_kept ... ok\n", None),
            ("test result: FAILED. 3 passed; 1 failed; 0 ignored\n", None),
            ("    a line of a test's own ... FAILED\n", None),
        ] {
            assert_eq!(failed_test(line), expected, "{line}");
        }
    }
}
