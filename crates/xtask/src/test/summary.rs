//! The end of a run's output: results of all parts, and how to repeat those that failed.

use std::fmt;
use std::time::{Duration, Instant};

use super::CheckOutcome;
use crate::{clock, process};

/// Results of all parts; `Display` formats the end of the output.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) lines: Vec<SummaryLine>,
    /// Time from the start of the run to its end. Tools are fetched concurrently, so it is not the sum of the lines.
    pub(super) wall: Duration,
    /// Whether a skip is a failure, as under `CI=true`.
    pub(super) strict: bool,
}

#[derive(Debug)]
pub(super) struct SummaryLine {
    pub(super) name: &'static str,
    /// Argument of `cargo xtask test` that runs the part alone.
    pub(super) check: &'static str,
    pub(super) outcome: CheckOutcome,
    pub(super) elapsed: Elapsed,
}

/// The time of a check, or of fetching a tool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Elapsed {
    pub(super) wall: Duration,
    /// User and system time of all processes that were started, on all processors together.
    pub(super) cpu: Duration,
}

/// Measures what one thread runs, without what other threads run meanwhile.
pub(super) struct Stopwatch {
    start: Instant,
    cpu_before: Duration,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { start: clock::now(), cpu_before: process::cpu_time() }
    }

    pub(super) fn elapsed(&self) -> Elapsed {
        Elapsed { wall: self.start.elapsed(), cpu: process::cpu_time().saturating_sub(self.cpu_before) }
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>13}{:>13}", clock::format_duration(self.wall), clock::format_duration(self.cpu))
    }
}

impl Summary {
    pub(super) fn passed(&self) -> bool {
        self.lines.iter().all(|line| match line.outcome {
            CheckOutcome::Passed => true,
            CheckOutcome::Skipped(_) => !self.strict,
            CheckOutcome::Failed(_) => false,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "=== summary ===")?;
        writeln!(f, "{:<15} {:<8}{:>13}{:>13}", "", "", "wall time", "CPU time")?;
        for line in &self.lines {
            let verdict = match line.outcome {
                CheckOutcome::Passed => "passed",
                CheckOutcome::Failed(_) => "FAILED",
                CheckOutcome::Skipped(_) => "skipped",
            };
            writeln!(f, "{:<15} {verdict:<8}{}", line.name, line.elapsed)?;
        }
        let all = Elapsed { wall: self.wall, cpu: self.lines.iter().map(|line| line.elapsed.cpu).sum() };
        writeln!(f, "{:<15} {:<8}{all}", "total", "")?;
        for line in &self.lines {
            if let CheckOutcome::Skipped(reason) = &line.outcome {
                writeln!(f, "\nskipped: {}: {reason}", line.name)?;
                if self.strict {
                    writeln!(f, "  under CI=true a skip is a failure")?;
                }
            }
        }
        for line in &self.lines {
            if let CheckOutcome::Failed(reason) = &line.outcome {
                writeln!(f, "\nFAILED: {}: {reason}", line.name)?;
                writeln!(f, "  run it again: cargo xtask test {}", line.check)?;
            }
        }
        if self.passed() { writeln!(f, "\nall checks that ran have passed") } else { writeln!(f, "\nnot passed") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(outcomes: [CheckOutcome; 3], strict: bool) -> Summary {
        let names = ["format", "tests", "real vLLM"];
        let parts = ["format", "tests", "tests"];
        let lines = outcomes.into_iter().enumerate().map(|(i, outcome)| SummaryLine {
            name: names[i],
            check: parts[i],
            outcome,
            elapsed: Elapsed { wall: Duration::from_millis(400), cpu: Duration::from_secs(75) },
        });
        Summary { lines: lines.collect(), wall: Duration::from_secs(1), strict }
    }

    #[test]
    fn successful_run_has_one_line_per_part() {
        let summary = summary([CheckOutcome::Passed, CheckOutcome::Passed, CheckOutcome::Passed], true);
        assert!(summary.passed());
        assert_eq!(
            summary.to_string(),
            "=== summary ===\n                            \
                 wall time     CPU time\n\
             format          passed          0.4 s   1 min 15 s\n\
             tests           passed          0.4 s   1 min 15 s\n\
             real vLLM       passed          0.4 s   1 min 15 s\n\
             total                           1.0 s   3 min 45 s\n\
             \nall checks that ran have passed\n"
        );
    }

    #[test]
    fn skip_is_reported_and_fails_only_under_ci() {
        let skip = || CheckOutcome::Skipped("no Python 3.11".to_owned());
        let at_home = summary([CheckOutcome::Passed, CheckOutcome::Passed, skip()], false);
        assert!(at_home.passed());
        assert!(at_home.to_string().contains("skipped: real vLLM: no Python 3.11\n"));
        let in_ci = summary([CheckOutcome::Passed, CheckOutcome::Passed, skip()], true);
        assert!(!in_ci.passed());
        assert!(in_ci.to_string().contains("under CI=true a skip is a failure"));
    }

    #[test]
    fn failure_is_reported_with_the_command_to_repeat_it() {
        let summary = summary(
            [CheckOutcome::Failed("not formatted".to_owned()), CheckOutcome::Passed, CheckOutcome::Passed],
            false,
        );
        assert!(!summary.passed());
        let text = summary.to_string();
        assert!(text.contains("FAILED: format: not formatted\n  run it again: cargo xtask test format\n"), "{text}");
    }
}
