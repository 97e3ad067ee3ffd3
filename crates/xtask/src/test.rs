//! `cargo xtask test`: everything that CI checks, part by part.
//!
//! A part that fails does not stop the others. A part that this machine cannot run is skipped, with the reason in the
//! last lines; under `CI=true` a skip is a failure, so that nobody merges what nobody has checked.

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};

use crate::{bench, clock, crds, process};

mod dependencies;
mod lints;
mod parts;
mod suites;
mod summary;

use parts::Fetching;
use summary::{Line, Summary};

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// The machine does not let it run.
    Skipped(String),
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(format!("{error:#}")), |()| Self::Passed)
    }
}

/// What can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Format,
    Dependencies,
    Lints,
    Crds,
    Tests,
    Bench,
}

impl Part {
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

    fn about(self) -> &'static str {
        match self {
            Self::Format => "is all code formatted as rustfmt does it",
            Self::Dependencies => "licences, banned and doubled crates, who knows whom, the document",
            Self::Lints => "does clippy find nothing",
            Self::Crds => "are crds/ and docs/sidecar-status.schema.json what the Rust types say",
            Self::Tests => "all tests, with a real vLLM on the CPU, a real API server, Envoy and endpoint picker",
            Self::Bench => "the numbers, from optimized builds",
        }
    }
}

pub(crate) fn run(long: bool, names: &[String]) -> Result<ExitCode> {
    let parts = chosen(names, long)?;
    // Side by side with the rest, because no part keeps the network and all processors busy by itself. The scope's end
    // waits for it, so that no early end of this function leaves it behind.
    let lines = thread::scope(|scope| -> Result<Vec<Line>> {
        let mut fetching = parts.contains(&Part::Tests).then(|| Fetching::start(scope));
        let mut lines = Vec::new();
        for part in parts {
            println!("\n=== {}: {} ===", part.name(), part.about());
            let start = clock::now();
            let mut line = |name, outcome| lines.push(Line { name, part: part.name(), outcome, took: start.elapsed() });
            match part {
                Part::Format => line(part.name(), lints::format()),
                Part::Dependencies => line(part.name(), dependencies::run()),
                Part::Lints => line(part.name(), lints::clippy()),
                Part::Crds => line(part.name(), crds::run(true).into()),
                Part::Tests => {
                    let fetching = fetching.take().unwrap_or_else(|| Fetching::start(scope));
                    for (name, outcome) in suites::run(long, fetching) {
                        line(name, outcome);
                    }
                }
                Part::Bench => line(part.name(), bench::outcome()),
            }
            process::fail_if_interrupted()?;
        }
        Ok(lines)
    })?;
    let summary = Summary { lines, strict: std::env::var("CI").is_ok_and(|value| value == "true") };
    print!("\n{summary}");
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String], long: bool) -> Result<Vec<Part>> {
    if names.is_empty() {
        return Ok(Part::ALL.into_iter().filter(|part| *part != Part::Bench || long).collect());
    }
    for name in names {
        if !Part::ALL.iter().any(|part| part.name() == name) {
            bail!("the tests have no part {name:?}; there are: {}", Part::ALL.map(Part::name).join(", "));
        }
    }
    Ok(Part::ALL.into_iter().filter(|part| names.iter().any(|name| name == part.name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], long: bool) -> Vec<&'static str> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        chosen(&names, long).unwrap().into_iter().map(Part::name).collect()
    }

    #[test]
    fn without_names_everything_runs_and_benches_only_when_there_is_time() {
        assert_eq!(names(&[], false), ["format", "dependencies", "lints", "crds", "tests"]);
        assert_eq!(names(&[], true), ["format", "dependencies", "lints", "crds", "tests", "bench"]);
    }

    #[test]
    fn named_parts_run_alone_in_their_order() {
        assert_eq!(names(&["tests", "format"], false), ["format", "tests"]);
    }

    #[test]
    fn a_part_that_does_not_exist_is_refused_with_those_that_do() {
        let words = chosen(&["fromat".to_owned()], false).unwrap_err().to_string();
        assert!(words.contains("\"fromat\"") && words.contains("format, dependencies"), "{words}");
    }
}
