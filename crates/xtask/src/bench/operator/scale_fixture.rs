//! Client of the process `scale-fixture`: sends commands and reads responses as JSON lines.

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

/// Time between SIGTERM and SIGKILL.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// Number of objects in the fixture.
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

/// Counts of the operator's requests, and of its status writes by cause.
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
    /// Counts the requests whose verb and resource, such as `update configmaps`, satisfy `wanted`.
    pub(super) fn count_requests(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.requests.iter().filter(|(what, _)| wanted(what)).map(|(_, count)| count).sum()
    }

    /// Counts the requests except writes of counters and writes because the ConfigMap changed.
    pub(super) fn requests_without_counter_writes(&self) -> u64 {
        self.count_requests(|_| true).saturating_sub(self.counter_writes + self.adapters_file_changes)
    }
}

/// The running process, with pipes to its standard input and output.
pub(super) struct ScaleFixtureProcess {
    _process: ChildProcess,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    kubeconfig: String,
    /// Locked while it is used, so that no other process clears it.
    _entry: ToolEntry,
}

impl ScaleFixtureProcess {
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let (command, entry) = control_plane_command(programs, "scale-fixture")?;
        let (process, stdin, stdout) = ChildProcess::start_with_pipes("scale-fixture", command)?;
        let (stdout, kubeconfig) = (BufReader::new(stdout), String::new());
        let process = process.with_termination_grace(TERMINATION_GRACE);
        let mut fixture = Self { _process: process, stdin, stdout, kubeconfig, _entry: entry };
        fixture.kubeconfig = fixture.read_line()?;
        Ok(fixture)
    }

    pub(super) fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Creates the first Rollout, which an operator has to complete.
    pub(super) fn seed(&mut self, size: ScaleSize) -> Result<()> {
        self.send_command(&json!({ "command": "seed", "pods": size.pods, "versions": size.versions })).map(drop)
    }

    /// Waits until an operator has completed it, and records it as the template.
    pub(super) fn record_template(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "record-template" })).map(drop)
    }

    /// Creates what is missing for this size, as if an operator had completed it too.
    pub(super) fn grow(&mut self, size: ScaleSize) -> Result<()> {
        let ScaleSize { pools, pods, rollouts, versions } = size;
        let command = json!({
            "command": "grow", "pools": pools, "pods": pods, "rollouts": rollouts, "versions": versions,
        });
        self.send_command(&command).map(drop)
    }

    /// Waits until every Rollout has been reconciled.
    pub(super) fn wait_until_reconciled(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "reconciled" })).map(drop)
    }

    /// Sets whether routers stay behind the last weights of rewrites with split traffic.
    pub(super) fn hold_routers(&mut self, held: bool) -> Result<()> {
        self.send_command(&json!({ "command": "hold", "held": held })).map(drop)
    }

    /// Sets `version` as the desired one in `count` pools, and waits until their steps are in progress.
    pub(super) fn begin_rollouts(&mut self, count: u16, version: u16) -> Result<()> {
        self.send_command(&json!({ "command": "begin", "count": count, "version": version })).map(drop)
    }

    /// Waits until no rollout is in progress.
    pub(super) fn wait_until_settled(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "settled" })).map(drop)
    }

    /// Sends an intent in `count` pools, one after the other, and returns the time of each in milliseconds.
    pub(super) fn send_intents(&mut self, verb: &str, count: u16) -> Result<Vec<f64>> {
        let times = self.send_command(&json!({ "command": "intent", "verb": verb, "count": count }))?;
        Ok(serde_json::from_value(times)?)
    }

    /// Starts the counts over.
    pub(super) fn reset_counts(&mut self) -> Result<()> {
        self.send_command(&json!({ "command": "reset-counts" })).map(drop)
    }

    /// Returns the counts since [`Self::reset_counts`].
    pub(super) fn request_counts(&mut self) -> Result<RequestCounts> {
        Ok(serde_json::from_value(self.send_command(&json!({ "command": "request-counts" }))?)?)
    }

    fn send_command(&mut self, command: &Value) -> Result<Value> {
        process::fail_if_interrupted()?;
        writeln!(self.stdin, "{command}")?;
        self.stdin.flush()?;
        let line = self.read_line()?;
        let response: Value = serde_json::from_str(&line).with_context(|| format!("not a response: {line}"))?;
        match response.get("failed") {
            Some(message) => {
                Err(anyhow!("the scale fixture failed at {command}: {}", message.as_str().unwrap_or_default()))
            }
            None => Ok(response.get("done").cloned().unwrap_or_default()),
        }
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            process::fail_if_interrupted()?;
            bail!("the scale fixture has exited; its output is above");
        }
        Ok(line.trim().to_owned())
    }
}
