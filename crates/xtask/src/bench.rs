//! `cargo xtask bench`: numbers from optimized builds, as a table or as JSON lines.
//!
//! Every number that is promised has its goal beside it; a goal that is missed ends the command with a failure.

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

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Measurement {
    bench: &'static str,
    #[serde(rename = "measure")]
    name: String,
    value: f64,
    unit: String,
    goal: Option<Goal>,
}

/// What a number should be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Measurement {
    fn new(bench: &'static str, what: &str, value: f64, unit: &str) -> Self {
        // More digits than these are noise.
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

/// The machine lacks what a number is compared with.
#[derive(Debug)]
struct MissingPrerequisite(String);

impl fmt::Display for MissingPrerequisite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MissingPrerequisite {}

/// Told whether it should be short, where it can be.
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
        let measures = bench(short)?;
        let mut out = std::io::stdout().lock();
        if json {
            for measure in &measures {
                writeln!(out, "{}", serde_json::to_string(measure)?)?;
            }
        } else {
            writeln!(out, "{}", markdown_table(&measures))?;
        }
        all_reached &= measures.iter().all(Measurement::meets_goal);
    }
    Ok(if all_reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All benches, as a part of the long tests.
pub(crate) fn run_all() -> CheckOutcome {
    let measures: Result<Vec<_>> = BENCHES.iter().map(|(_, bench)| bench(false)).collect();
    match measures {
        Ok(measures) => {
            let measures = measures.concat();
            println!("{}", markdown_table(&measures));
            let missed: Vec<_> = measures.iter().filter(|measure| !measure.meets_goal()).collect();
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
        None => bail!("there is no bench {name:?}; there are: {}", BENCHES.map(|(known, _)| known).join(", ")),
    };
    names.iter().map(find).collect()
}

/// A Markdown table, which reads well as it is too.
fn markdown_table(measures: &[Measurement]) -> String {
    let heads = ["bench", "measure", "value", "unit", "goal", ""].map(str::to_owned);
    let rows = measures.iter().map(|measure| {
        let goal = measure.goal.map(|goal| goal.to_string()).unwrap_or_default();
        let verdict = match measure.goal {
            Some(_) if measure.meets_goal() => "reached",
            Some(_) => "MISSED",
            None => "",
        };
        let value = measure.value.to_string();
        [measure.bench.to_owned(), measure.name.clone(), value, measure.unit.clone(), goal, verdict.to_owned()]
    });
    let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
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

/// The middle of some numbers; of an even count the lower one of the two.
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
    fn the_table_has_a_row_a_measure_and_says_which_goals_are_missed() {
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
    fn a_json_line_has_exactly_the_promised_fields() {
        let lines: Vec<_> =
            example_measurements().iter().map(|measure| serde_json::to_string(measure).unwrap()).collect();
        assert_eq!(lines[0], r#"{"bench":"gateway","measure":"ratio","value":1.5,"unit":"x","goal":"<= 2"}"#);
        assert_eq!(lines[1], r#"{"bench":"gateway","measure":"requests","value":9000.0,"unit":"1/s","goal":null}"#);
    }

    #[test]
    fn the_median_is_the_middle_value() {
        for (values, expected) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![1.0], 1.0), (vec![2.0, 1.0], 1.0), (vec![], 0.0)] {
            assert!((median(values) - expected).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn a_bench_that_does_not_exist_is_refused_with_those_that_do() {
        let words = select_benches(&["gatewya".to_owned()]).unwrap_err().to_string();
        assert!(words.contains("gateway, idle, operator, router, sidecar"), "{words}");
    }
}
