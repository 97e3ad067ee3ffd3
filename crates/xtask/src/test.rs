//! `cargo xtask test`: everything that CI checks, part by part.
//!
//! A part that fails does not stop the others. A part that this machine cannot run is skipped, with the reason in the
//! last lines; under `CI=true` a skip is a failure, so that nobody merges what nobody has checked.

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};

use crate::workspace::Lints;
use crate::{bench, clock, process};

mod compile;
mod dependencies;
mod format;
mod suites;
mod summary;
mod test_tools;

use summary::{Stopwatch, Summary, SummaryLine};
use test_tools::PendingTools;

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CheckOutcome {
    Passed,
    Failed(String),
    /// The machine does not let it run.
    Skipped(String),
}

impl From<Result<()>> for CheckOutcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(format!("{error:#}")), |()| Self::Passed)
    }
}

/// What can be run by itself.
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
    /// In the order in which they run: what ends soon first. The dependencies are also fetched there, once and with
    /// several tries, so that what follows asks no registry.
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
            Self::Format => "is all code formatted as rustfmt does it",
            Self::Dependencies => "licences, banned and doubled crates, which crate may use which, the document",
            Self::Lints => "does all code compile, and does clippy find nothing",
            Self::Crds => "are crds/ and docs/sidecar-status.schema.json what the Rust types say",
            Self::Tests => "all tests, with a real vLLM on the CPU, a real API server, Envoy and endpoint picker",
            Self::Bench => "the numbers, from optimized builds",
        }
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What needs no tool and ends within minutes of a change: format, lints, unit tests, laws, the guide on one machine.
    Quick,
    /// What CI checks.
    Whole,
    /// That with the repetitions and the long fault schedules, and the benches.
    Long,
}

pub(crate) fn run(scope: Scope, names: &[String]) -> Result<ExitCode> {
    let parts = select_checks(names, scope)?;
    // Every part compiles in the same way, so that nothing is compiled twice.
    let linting = if compile::has_clippy() { Lints::On } else { Lints::Off };
    // Side by side with the rest, because no part keeps the network and all processors busy by itself. The scope's end
    // waits for it, so that no early end of this function leaves it behind.
    let start = clock::now();
    let lines = thread::scope(|threads| -> Result<Vec<SummaryLine>> {
        let with_tools = scope != Scope::Quick && parts.contains(&CheckKind::Tests);
        let mut fetching = with_tools.then(|| PendingTools::start(threads));
        let mut lines = Vec::new();
        for part in parts {
            println!("\n=== {}: {} ===", part.name(), part.description());
            let stopwatch = Stopwatch::start();
            let mut of_tools = Vec::new();
            let outcome = match part {
                CheckKind::Format => format::run(),
                CheckKind::Dependencies => dependencies::run(),
                CheckKind::Lints => compile::run(linting),
                CheckKind::Crds => compile::crds(linting).into(),
                CheckKind::Tests if scope == Scope::Quick => suites::quick(linting),
                CheckKind::Tests => {
                    let fetching = fetching.take().unwrap_or_else(|| PendingTools::start(threads));
                    let (tests, tools) = suites::run(scope, linting, fetching);
                    of_tools = tools;
                    tests
                }
                CheckKind::Bench => bench::run_all(),
            };
            lines.push(SummaryLine { name: part.name(), check: part.name(), outcome, elapsed: stopwatch.elapsed() });
            lines.append(&mut of_tools);
            process::fail_if_interrupted()?;
        }
        Ok(lines)
    })?;
    let summary =
        Summary { lines, wall: start.elapsed(), strict: std::env::var("CI").is_ok_and(|value| value == "true") };
    print!("\n{summary}");
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn select_checks(names: &[String], scope: Scope) -> Result<Vec<CheckKind>> {
    if names.is_empty() {
        let runs = |part: &CheckKind| match part {
            CheckKind::Format | CheckKind::Lints | CheckKind::Tests => true,
            CheckKind::Dependencies | CheckKind::Crds => scope != Scope::Quick,
            CheckKind::Bench => scope == Scope::Long,
        };
        return Ok(CheckKind::ALL.into_iter().filter(runs).collect());
    }
    for name in names {
        if CheckKind::ALL.iter().all(|part| part.name() != name) {
            bail!("the tests have no part {name:?}; there are: {}", CheckKind::ALL.map(CheckKind::name).join(", "));
        }
    }
    Ok(CheckKind::ALL.into_iter().filter(|part| names.iter().any(|name| name == part.name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected_names(names: &[&str], scope: Scope) -> Vec<&'static str> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        select_checks(&names, scope).unwrap().into_iter().map(CheckKind::name).collect()
    }

    #[test]
    fn without_names_the_scope_says_which_parts_run() {
        assert_eq!(selected_names(&[], Scope::Quick), ["format", "lints", "tests"]);
        assert_eq!(selected_names(&[], Scope::Whole), ["format", "dependencies", "lints", "crds", "tests"]);
        assert_eq!(selected_names(&[], Scope::Long), ["format", "dependencies", "lints", "crds", "tests", "bench"]);
    }

    #[test]
    fn named_parts_run_alone_in_their_order() {
        assert_eq!(selected_names(&["tests", "format"], Scope::Whole), ["format", "tests"]);
    }

    #[test]
    fn a_part_that_does_not_exist_is_refused_with_those_that_do() {
        let words = select_checks(&["fromat".to_owned()], Scope::Whole).unwrap_err().to_string();
        assert!(words.contains("\"fromat\"") && words.contains("format, dependencies"), "{words}");
    }
}
