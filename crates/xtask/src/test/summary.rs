//! The last lines of a run: what passed, what did not, and how to run just that.

use std::fmt;
use std::time::Duration;

use super::Outcome;
use crate::clock;

/// All parts of a run. Its text is the end of the output.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) lines: Vec<Line>,
    /// Whether a skip is a failure.
    pub(super) strict: bool,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    /// What to type to run it alone.
    pub(super) part: &'static str,
    pub(super) outcome: Outcome,
    /// What the part took; `None` for what it reports besides.
    pub(super) took: Option<Took>,
}

/// The time of a part: on the wall, and of all processors together, without tools that were fetched beside it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Took {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>13}{:>13}", clock::words(self.wall), clock::words(self.cpu))
    }
}

impl Summary {
    pub(super) fn passed(&self) -> bool {
        self.lines.iter().all(|line| match line.outcome {
            Outcome::Passed => true,
            Outcome::Skipped(_) => !self.strict,
            Outcome::Failed(_) => false,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "=== summary ===")?;
        writeln!(f, "{:<15} {:<8}{:>13}{:>13}", "", "", "wall time", "CPU time")?;
        for line in &self.lines {
            let verdict = match line.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed(_) => "FAILED",
                Outcome::Skipped(_) => "skipped",
            };
            let took = line.took.map(|took| took.to_string()).unwrap_or_default();
            writeln!(f, "{}", format!("{:<15} {verdict:<8}{took}", line.name).trim_end())?;
        }
        let all = self.lines.iter().filter_map(|line| line.took);
        let all = all.fold(Took::default(), |all, took| Took { wall: all.wall + took.wall, cpu: all.cpu + took.cpu });
        writeln!(f, "{:<15} {:<8}{all}", "in all", "")?;
        for line in &self.lines {
            if let Outcome::Skipped(reason) = &line.outcome {
                writeln!(f, "\nskipped: {}: {reason}", line.name)?;
                if self.strict {
                    writeln!(f, "  under CI=true that is a failure")?;
                }
            }
        }
        for line in &self.lines {
            if let Outcome::Failed(reason) = &line.outcome {
                writeln!(f, "\nFAILED: {}: {reason}", line.name)?;
                writeln!(f, "  just that again: cargo xtask test {}", line.part)?;
            }
        }
        if self.passed() { writeln!(f, "\nall that ran has passed") } else { writeln!(f, "\nnot passed") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(outcomes: [Outcome; 3], strict: bool) -> Summary {
        let names = ["format", "tests", "real vLLM"];
        let parts = ["format", "tests", "tests"];
        let lines = outcomes.into_iter().enumerate().map(|(i, outcome)| Line {
            name: names[i],
            part: parts[i],
            outcome,
            took: (i < 2).then_some(Took { wall: Duration::from_millis(400), cpu: Duration::from_secs(75) }),
        });
        Summary { lines: lines.collect(), strict }
    }

    #[test]
    fn when_all_is_well_there_is_a_line_a_part() {
        let summary = summary([Outcome::Passed, Outcome::Passed, Outcome::Passed], true);
        assert!(summary.passed());
        assert_eq!(
            summary.to_string(),
            "=== summary ===\n                            \
                 wall time     CPU time\n\
             format          passed          0.4 s   1 min 15 s\n\
             tests           passed          0.4 s   1 min 15 s\n\
             real vLLM       passed\n\
             in all                          0.8 s   2 min 30 s\n\
             \nall that ran has passed\n"
        );
    }

    #[test]
    fn a_skip_is_named_with_its_reason_and_fails_only_under_ci() {
        let skip = || Outcome::Skipped("there is no Python 3.11".to_owned());
        let at_home = summary([Outcome::Passed, Outcome::Passed, skip()], false);
        assert!(at_home.passed());
        assert!(at_home.to_string().contains("skipped: real vLLM: there is no Python 3.11\n"));
        let in_ci = summary([Outcome::Passed, Outcome::Passed, skip()], true);
        assert!(!in_ci.passed());
        assert!(in_ci.to_string().contains("under CI=true that is a failure"));
    }

    #[test]
    fn a_failure_is_named_with_how_to_run_just_that() {
        let summary = summary([Outcome::Failed("not formatted".to_owned()), Outcome::Passed, Outcome::Passed], false);
        assert!(!summary.passed());
        let text = summary.to_string();
        assert!(text.contains("FAILED: format: not formatted\n  just that again: cargo xtask test format\n"), "{text}");
    }
}
