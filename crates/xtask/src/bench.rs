//! `cargo xtask bench`: measurements of optimized builds, as a table or as JSON lines.
//!
//! A measurement can have a goal; a missed goal makes the command fail.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::test::CheckOutcome;

mod ext_proc;
mod gateway;
mod http_response;
mod idle;
mod load_generator;
mod operator;
mod processes;
mod router;
mod sidecar;

/// A measured value with its unit and goal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Measurement {
    bench: &'static str,
    #[serde(rename = "measure")]
    name: String,
    value: f64,
    unit: String,
    goal: Option<Goal>,
}

/// Bound of a measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Measurement {
    fn new(bench: &'static str, what: &str, value: f64, unit: &str) -> Self {
        // Further digits are noise.
        let value = (value * 100.0).round() / 100.0;
        Self { bench, name: what.to_owned(), value, unit: unit.to_owned(), goal: None }
    }

    fn at_most(mut self, limit: f64) -> Self {
        self.goal = Some(Goal::AtMost(limit));
        self
    }

    fn at_least(mut self, limit: f64) -> Self {
        self.goal = Some(Goal::AtLeast(limit));
        self
    }

    fn meets_goal(&self) -> bool {
        match self.goal {
            Some(Goal::AtMost(limit)) => self.value <= limit,
            Some(Goal::AtLeast(limit)) => self.value >= limit,
            None => true,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A prerequisite of a bench is missing on this machine.
#[derive(Debug)]
struct MissingPrerequisite(String);

impl fmt::Display for MissingPrerequisite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MissingPrerequisite {}

/// Runs a bench; the argument asks for the short version, if there is one.
type BenchFn = fn(bool) -> Result<Vec<Measurement>>;

const BENCHES: [(&str, BenchFn); 6] = [
    ("ext-proc", ext_proc::run),
    ("gateway", |_| gateway::run()),
    ("idle", |_| idle::run()),
    ("operator", operator::run),
    ("router", |_| router::run()),
    ("sidecar", |_| sidecar::run()),
];

pub(crate) fn run(names: &[String], json: bool, short: bool) -> Result<ExitCode> {
    let mut all_reached = true;
    for bench in select_benches(names)? {
        let measurements = bench(short)?;
        let mut out = std::io::stdout().lock();
        if json {
            for measurement in &measurements {
                writeln!(out, "{}", serde_json::to_string(measurement)?)?;
            }
        } else {
            writeln!(out, "{}", markdown_table(&measurements))?;
        }
        all_reached &= measurements.iter().all(Measurement::meets_goal);
    }
    Ok(if all_reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all benches, as a part of `cargo xtask test --long`.
pub(crate) fn run_all() -> CheckOutcome {
    let measurements: Result<Vec<_>> = BENCHES.iter().map(|(_, bench)| bench(false)).collect();
    match measurements {
        Ok(measurements) => {
            let measurements = measurements.concat();
            println!("{}", markdown_table(&measurements));
            let missed: Vec<_> = measurements.iter().filter(|measurement| !measurement.meets_goal()).collect();
            match missed.as_slice() {
                [] => CheckOutcome::Passed,
                [first, ..] => CheckOutcome::Failed(format!("{}: {} misses its goal", first.bench, first.name)),
            }
        }
        Err(error) if error.is::<MissingPrerequisite>() => CheckOutcome::Skipped(error.to_string()),
        Err(error) => CheckOutcome::Failed(format!("{error:#}")),
    }
}

fn select_benches(names: &[String]) -> Result<Vec<BenchFn>> {
    let find = |name: &String| match BENCHES.iter().find(|(known, _)| known == name) {
        Some((_, bench)) => Ok(*bench),
        None => bail!("unknown bench {name:?}; valid names: {}", BENCHES.map(|(known, _)| known).join(", ")),
    };
    names.iter().map(find).collect()
}

/// Formats a Markdown table with aligned columns.
fn markdown_table(measurements: &[Measurement]) -> String {
    let header = ["bench", "measure", "value", "unit", "goal", ""].map(str::to_owned);
    let rows = measurements.iter().map(|measurement| {
        let goal = measurement.goal.map(|goal| goal.to_string()).unwrap_or_default();
        let verdict = match measurement.goal {
            Some(_) if measurement.meets_goal() => "reached",
            Some(_) => "MISSED",
            None => "",
        };
        let value = measurement.value.to_string();
        [
            measurement.bench.to_owned(),
            measurement.name.clone(),
            value,
            measurement.unit.clone(),
            goal,
            verdict.to_owned(),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.map(|width| "-".repeat(width));
    let [head, body @ ..] = rows.as_slice() else { return String::new() };
    std::iter::once(head).chain([&rule]).chain(body).map(line).collect()
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn kib_to_mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// Returns the median; of an even number of values the lower one of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example_measurements() -> Vec<Measurement> {
        vec![
            Measurement::new("gateway", "ratio", 1.504, "x").at_most(2.0),
            Measurement::new("gateway", "requests", 9000.0, "1/s"),
            Measurement::new("idle", "RSS", 15.2, "MiB").at_most(15.0),
        ]
    }

    #[test]
    fn table_has_a_row_per_measurement_and_marks_missed_goals() {
        assert_eq!(
            markdown_table(&example_measurements()),
            "| bench   | measure  | value | unit | goal  |         |\n\
             | ------- | -------- | ----- | ---- | ----- | ------- |\n\
             | gateway | ratio    | 1.5   | x    | <= 2  | reached |\n\
             | gateway | requests | 9000  | 1/s  |       |         |\n\
             | idle    | RSS      | 15.2  | MiB  | <= 15 | MISSED  |\n"
        );
    }

    #[test]
    fn json_line_has_exactly_the_documented_fields() {
        let lines: Vec<_> =
            example_measurements().iter().map(|measurement| serde_json::to_string(measurement).unwrap()).collect();
        assert_eq!(lines[0], r#"{"bench":"gateway","measure":"ratio","value":1.5,"unit":"x","goal":"<= 2"}"#);
        assert_eq!(lines[1], r#"{"bench":"gateway","measure":"requests","value":9000.0,"unit":"1/s","goal":null}"#);
    }

    #[test]
    fn median_is_the_lower_middle_value() {
        for (values, expected) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![1.0], 1.0), (vec![2.0, 1.0], 1.0), (vec![], 0.0)] {
            assert!((median(values) - expected).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn unknown_bench_is_rejected_with_the_valid_names() {
        let message = select_benches(&["gatewya".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("gateway, idle, operator, router, sidecar"), "{message}");
    }
}
