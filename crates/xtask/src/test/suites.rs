//! Runs the test suites.

use std::process::Command;

use anyhow::{Result, bail};

use super::compile::EVERYTHING;
use super::summary::SummaryLine;
use super::test_tools::PendingTools;
use super::{CheckOutcome, TestScope};
use crate::process;
use crate::workspace::{self, Lints, cargo};

/// Environment variable that enables the repetitions and the long schedules.
const LONG_VARIABLE: &str = "ROLLORA_LONG";
/// Seed of the property tests; fixed in short runs by `.cargo/config.toml`.
const SEED_VARIABLE: &str = "PROPTEST_RNG_SEED";

/// Tests that need neither tools nor scenarios: the unit tests of all crates and programs.
const UNIT_TESTS: &[&str] = &["--workspace", "--lib", "--bins"];
/// Tests that check pure decision code against properties or test vectors.
const PROPERTY_TESTS: &[&str] = &[
    "-p",
    "rollora-operator",
    "-p",
    "rollora-router",
    "-p",
    "rollora-sidecar",
    "--test",
    "simulated",
    "--test",
    "vectors",
    "--test",
    "harness",
    "--test",
    "properties",
    "--test",
    "response_matrix",
];
/// The guide, once, with the real programs on one machine.
const GUIDE: &[&str] = &["-p", "rollora-e2e", "--test", "scenarios", "--", "guide::", "--skip", "::cluster"];

/// Runs all tests; returns their outcome, and a summary line for each tool that took time or is not available.
pub(super) fn run(scope: TestScope, lints: Lints, fetching: PendingTools<'_>) -> (CheckOutcome, Vec<SummaryLine>) {
    let built = workspace::build_with(lints, &EVERYTHING);
    // Wait for the builds of tools, because tests that measure time need the processors for themselves.
    let tools = fetching.wait();
    let tested = built.and_then(|_| {
        // Any number that differs between runs.
        let seed = std::process::id().to_string();
        let long = scope == TestScope::Long;
        if long {
            println!("property tests use {SEED_VARIABLE}={seed}: set it for `cargo test` to repeat the same cases");
        }
        run_cargo_test(lints, &["--workspace"], |command| {
            tools.set_env(command);
            if long {
                command.env(LONG_VARIABLE, "1").env(SEED_VARIABLE, &seed);
            }
        })
    });
    (tested.into(), tools.lines())
}

/// Runs the tests that take a minute or two once everything is compiled.
pub(super) fn quick(lints: Lints) -> CheckOutcome {
    let suites = [UNIT_TESTS, PROPERTY_TESTS, GUIDE].map(|arguments| run_cargo_test(lints, arguments, |_| {}));
    suites.into_iter().collect::<Result<()>>().into()
}

/// Runs `cargo test`, shows its output, and names the tests that failed.
fn run_cargo_test(lints: Lints, arguments: &[&str], set: impl Fn(&mut Command)) -> Result<()> {
    let mut command = cargo(&["test", "--locked", "--no-fail-fast"])?;
    command.args(arguments);
    lints.set(&mut command)?;
    set(&mut command);
    let mut failed = Vec::new();
    let status = process::run_with_lines(&mut command, |line| {
        failed.extend(parse_failed_test(line).map(str::to_owned));
        print!("{line}");
    })?;
    match failed.as_slice() {
        [] if status.success() => Ok(()),
        [] => bail!("`{}` failed with {}", process::format_command(&command), process::describe_exit(status)),
        names => bail!("{} of `{}` failed: {}", names.len(), process::format_command(&command), names.join(", ")),
    }
}

/// Parses the name of a failed test from a line of output.
fn parse_failed_test(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_parsed_from_output() {
        for (line, expected) in [
            ("test sse::a_cut_event_is_kept ... FAILED\n", Some("sse::a_cut_event_is_kept")),
            ("test sse::a_cut_event_is_kept ... ok\n", None),
            ("test result: FAILED. 3 passed; 1 failed; 0 ignored\n", None),
            ("    a line of a test's own ... FAILED\n", None),
        ] {
            assert_eq!(parse_failed_test(line), expected, "{line}");
        }
    }
}
