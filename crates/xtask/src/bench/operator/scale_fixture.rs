//! The process with the API server and everybody who answers for pods, spoken to in lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rollora_supervise::ChildProcess;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::processes::control_plane_command;
use crate::process;
use crate::tools::ToolEntry;
use crate::workspace::Programs;

/// What it has between the request to end and the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScaleSize {
    pub(super) pools: u16,
    pub(super) pods: u8,
    pub(super) rollouts: u16,
    pub(super) versions: u16,
}

impl ScaleSize {
    pub(super) fn total_rollouts(self) -> u32 {
        u32::from(self.pools) * u32::from(self.rollouts)
    }
}

/// What was asked of the API server, and what Rollouts' status was written for.
#[derive(Debug, Deserialize)]
pub(super) struct RequestCounts {
    requests: std::collections::BTreeMap<String, u64>,
    pub(super) watches: u64,
    pub(super) discoveries: u64,
    pub(super) transitions: u64,
    pub(super) weight_changes: u64,
    pub(super) adapters_file_changes: u64,
    pub(super) counter_writes: u64,
    pub(super) other_writes: u64,
    pub(super) min_counter_write_interval_ms: Option<u64>,
    pub(super) max_counter_writes: u64,
}

impl RequestCounts {
    /// Requests of some kinds: `update configmaps`.
    pub(super) fn count_requests(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.requests.iter().filter(|(what, _)| wanted(what)).map(|(_, count)| count).sum()
    }

    /// Requests but those that wrote mere counts, or which version of the ConfigMap was read.
    pub(super) fn requests_without_counter_writes(&self) -> u64 {
        self.count_requests(|_| true).saturating_sub(self.counter_writes + self.adapters_file_changes)
    }
}

/// A running population.
pub(super) struct ScaleFixtureProcess {
    _process: ChildProcess,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    kubeconfig: String,
    /// Held as long as it is used, so that nobody clears it.
    _entry: ToolEntry,
}

impl ScaleFixtureProcess {
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let (command, entry) = control_plane_command(programs, "scale-fixture")?;
        let (process, orders, answers) = ChildProcess::start_with_pipes("scale-fixture", command)?;
        let (answers, kubeconfig) = (BufReader::new(answers), String::new());
        let process = process.with_termination_grace(FAREWELL);
        let mut population = Self { _process: process, stdin: orders, stdout: answers, kubeconfig, _entry: entry };
        population.kubeconfig = population.read_line()?;
        Ok(population)
    }

    pub(super) fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Makes the first Rollout, for an operator to carry it through.
    pub(super) fn seed(&mut self, size: ScaleSize) -> Result<()> {
        self.send_command(&json!({ "command": "seed", "pods": size.pods, "versions": size.versions })).map(drop)
    }

    /// Waits until that was done, and remembers what it looks like.
    pub(super) fn record_template(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "record-template" })).map(drop)
    }

    /// Makes what is missing up to this size, as if an operator had carried that through too.
    pub(super) fn grow(&mut self, size: ScaleSize) -> Result<()> {
        let ScaleSize { pools, pods, rollouts, versions } = size;
        let order = json!({
            "command": "grow", "pools": pools, "pods": pods, "rollouts": rollouts, "versions": versions,
        });
        self.send_command(&order).map(drop)
    }

    /// Waits until every Rollout was looked at.
    pub(super) fn wait_until_reconciled(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "reconciled" })).map(drop)
    }

    /// From now on routers stay behind what is split, or not any more.
    pub(super) fn hold_routers(&mut self, held: bool) -> Result<()> {
        self.send_command(&json!({ "command": "hold", "held": held })).map(drop)
    }

    /// Wants this version in so many pools, and waits until steps are under way there.
    pub(super) fn begin_rollouts(&mut self, count: u16, version: u16) -> Result<()> {
        self.send_command(&json!({ "command": "begin", "count": count, "version": version })).map(drop)
    }

    /// Waits until nothing is under way.
    pub(super) fn wait_until_settled(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "settled" })).map(drop)
    }

    /// Asks for this in so many pools, one after the other; gives the milliseconds of each.
    pub(super) fn send_intents(&mut self, verb: &str, count: u16) -> Result<Vec<f64>> {
        let times = self.send_command(&json!({ "command": "intent", "verb": verb, "count": count }))?;
        Ok(serde_json::from_value(times)?)
    }

    /// Counts from now on.
    pub(super) fn reset_counts(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "reset-counts" })).map(drop)
    }

    /// What was counted.
    pub(super) fn request_counts(&mut self) -> Result<RequestCounts> {
        Ok(serde_json::from_value(self.send_command(&json!({ "command": "request-counts" }))?)?)
    }

    fn send_command(&mut self, order: &Value) -> Result<Value> {
        process::fail_if_interrupted()?;
        writeln!(self.stdin, "{order}")?;
        self.stdin.flush()?;
        let line = self.read_line()?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("no answer: {line}"))?;
        match answer.get("failed") {
            Some(why) => Err(anyhow!("{order}: {}", why.as_str().unwrap_or_default())),
            None => Ok(answer.get("done").cloned().unwrap_or_default()),
        }
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            process::fail_if_interrupted()?;
            bail!("the population has ended; what it said stands above");
        }
        Ok(line.trim().to_owned())
    }
}
