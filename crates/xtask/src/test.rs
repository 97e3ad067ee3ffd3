//! `cargo xtask test`: all checks of CI, part by part.
//!
//! A part that fails does not stop the others. A part that this machine cannot run is skipped, with the reason at the
//! end of the output. Under `CI=true` a skip is a failure, so that no change is merged unchecked.

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};

use crate::workspace::{self, Lints};
use crate::{bench, clock, process};

mod compile;
mod dependencies;
mod format;
mod suites;
mod summary;
mod test_tools;

use summary::{Stopwatch, Summary, SummaryLine};
use test_tools::PendingTools;

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CheckOutcome {
    Passed,
    Failed(String),
    /// The check cannot run on this machine, for this reason.
    Skipped(String),
}

impl From<Result<()>> for CheckOutcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(format!("{error:#}")), |()| Self::Passed)
    }
}

/// A part that can be run separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckKind {
    Format,
    Dependencies,
    Lints,
    Crds,
    Tests,
    Bench,
}

impl CheckKind {
    /// In the order in which they run, the fastest first. The dependencies check also fetches all crates, once and with
    /// several attempts, so that later parts do not use the registry.
    const ALL: [Self; 6] = [Self::Format, Self::Dependencies, Self::Lints, Self::Crds, Self::Tests, Self::Bench];

    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Dependencies => "dependencies",
            Self::Lints => "lints",
            Self::Crds => "crds",
            Self::Tests => "tests",
            Self::Bench => "bench",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Format => "formatting by rustfmt",
            Self::Dependencies => "licenses, banned and duplicate crates, layers, docs/dependencies.md",
            Self::Lints => "compilation without warnings, and clippy",
            Self::Crds => "crds/ and docs/sidecar-status.schema.json against the Rust types",
            Self::Tests => "all tests, with a real vLLM on the CPU, a real API server, Envoy and endpoint picker",
            Self::Bench => "measurements of optimized builds",
        }
    }
}

/// Which checks and tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestScope {
    /// Checks that need no external tools and end within minutes: format, lints, unit and property tests, and the guide
    /// on one machine.
    Quick,
    /// Everything that CI checks.
    Whole,
    /// Everything that CI checks, the repetitions, the long fault schedules, and the benches.
    Long,
}

pub(crate) fn run(scope: TestScope, names: &[String]) -> Result<ExitCode> {
    let parts = select_checks(names, scope)?;
    // All parts compile with the same settings, so that nothing is compiled twice.
    let linting = if compile::has_clippy() { Lints::On } else { Lints::Off };
    // Tools are fetched concurrently, because no part uses both the network and all processors. The scope waits for the
    // thread, so that an early return does not leave it behind.
    let start = clock::now();
    let lines = thread::scope(|threads| -> Result<Vec<SummaryLine>> {
        let with_tools = scope != TestScope::Quick && parts.contains(&CheckKind::Tests);
        let mut fetching = with_tools.then(|| PendingTools::start(threads));
        let mut lines = Vec::new();
        for part in parts {
            println!("\n=== {}: {} ===", part.name(), part.description());
            let stopwatch = Stopwatch::start();
            let mut tool_lines = Vec::new();
            let outcome = match part {
                CheckKind::Format => format::run(),
                CheckKind::Dependencies => dependencies::run(),
                CheckKind::Lints => compile::run(linting),
                CheckKind::Crds => compile::crds(linting).into(),
                CheckKind::Tests if scope == TestScope::Quick => suites::quick(linting),
                CheckKind::Tests => {
                    let fetching = fetching.take().unwrap_or_else(|| PendingTools::start(threads));
                    let (tests, tools) = suites::run(scope, linting, fetching);
                    tool_lines = tools;
                    tests
                }
                CheckKind::Bench => bench::run_all(),
            };
            lines.push(SummaryLine { name: part.name(), check: part.name(), outcome, elapsed: stopwatch.elapsed() });
            lines.append(&mut tool_lines);
            process::fail_if_interrupted()?;
        }
        Ok(lines)
    })?;
    let summary = Summary { lines, wall: start.elapsed(), strict: workspace::is_ci() };
    print!("\n{summary}");
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn select_checks(names: &[String], scope: TestScope) -> Result<Vec<CheckKind>> {
    if names.is_empty() {
        let runs = |part: &CheckKind| match part {
            CheckKind::Format | CheckKind::Lints | CheckKind::Tests => true,
            CheckKind::Dependencies | CheckKind::Crds => scope != TestScope::Quick,
            CheckKind::Bench => scope == TestScope::Long,
        };
        return Ok(CheckKind::ALL.into_iter().filter(runs).collect());
    }
    for name in names {
        if CheckKind::ALL.iter().all(|part| part.name() != name) {
            bail!("the tests have no part {name:?}; valid parts: {}", CheckKind::ALL.map(CheckKind::name).join(", "));
        }
    }
    Ok(CheckKind::ALL.into_iter().filter(|part| names.iter().any(|name| name == part.name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected_names(names: &[&str], scope: TestScope) -> Vec<&'static str> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        select_checks(&names, scope).unwrap().into_iter().map(CheckKind::name).collect()
    }

    #[test]
    fn scope_selects_the_parts_without_names() {
        assert_eq!(selected_names(&[], TestScope::Quick), ["format", "lints", "tests"]);
        assert_eq!(selected_names(&[], TestScope::Whole), ["format", "dependencies", "lints", "crds", "tests"]);
        assert_eq!(selected_names(&[], TestScope::Long), ["format", "dependencies", "lints", "crds", "tests", "bench"]);
    }

    #[test]
    fn named_parts_run_in_the_fixed_order() {
        assert_eq!(selected_names(&["tests", "format"], TestScope::Whole), ["format", "tests"]);
    }

    #[test]
    fn unknown_part_is_rejected_with_the_valid_ones() {
        let message = select_checks(&["fromat".to_owned()], TestScope::Whole).unwrap_err().to_string();
        assert!(message.contains("\"fromat\"") && message.contains("format, dependencies"), "{message}");
    }
}
