//! The process with the API server and everybody who answers for pods, spoken to in lines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rollora_supervise::ChildProcess;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::servers::with_control_plane;
use crate::process;
use crate::tools::Entry;
use crate::workspace::Programs;

/// What it has between the request to end and the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) pools: u16,
    pub(super) pods: u8,
    pub(super) rollouts: u16,
    pub(super) versions: u16,
}

impl Size {
    pub(super) fn rollouts_in_all(self) -> u32 {
        u32::from(self.pools) * u32::from(self.rollouts)
    }
}

/// What was asked of the API server, and what Rollouts' status was written for.
#[derive(Debug, Deserialize)]
pub(super) struct Account {
    requests: std::collections::BTreeMap<String, u64>,
    pub(super) watches: u64,
    pub(super) discoveries: u64,
    pub(super) transitions: u64,
    pub(super) weights: u64,
    pub(super) files: u64,
    pub(super) progress: u64,
    pub(super) others: u64,
    pub(super) shortest_pace: Option<u64>,
    pub(super) most_progress: u64,
}

impl Account {
    /// Requests of some kinds: `update configmaps`.
    pub(super) fn sum(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.requests.iter().filter(|(what, _)| wanted(what)).map(|(_, count)| count).sum()
    }

    /// Requests but those that wrote mere counts, or which version of the ConfigMap was read.
    pub(super) fn but_counts(&self) -> u64 {
        self.sum(|_| true).saturating_sub(self.progress + self.files)
    }
}

/// A running population.
pub(super) struct Population {
    _process: ChildProcess,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    kubeconfig: String,
    /// Held as long as it is used, so that nobody clears it.
    _entry: Entry,
}

impl Population {
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let (command, entry) = with_control_plane(programs, "population")?;
        let (process, orders, answers) = ChildProcess::start_with_pipes("population", command)?;
        let (answers, kubeconfig) = (BufReader::new(answers), String::new());
        let process = process.with_termination_grace(FAREWELL);
        let mut population = Self { _process: process, orders, answers, kubeconfig, _entry: entry };
        population.kubeconfig = population.line()?;
        Ok(population)
    }

    pub(super) fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Makes the first Rollout, for an operator to carry it through.
    pub(super) fn seed(&mut self, size: Size) -> Result<()> {
        self.order(&json!({ "order": "seed", "pods": size.pods, "versions": size.versions })).map(drop)
    }

    /// Waits until that was done, and remembers what it looks like.
    pub(super) fn learn(&mut self) -> Result<()> {
        self.order(&json!({ "order": "learn" })).map(drop)
    }

    /// Makes what is missing up to this size, as if an operator had carried that through too.
    pub(super) fn grow(&mut self, size: Size) -> Result<()> {
        let Size { pools, pods, rollouts, versions } = size;
        let order = json!({
            "order": "grow", "pools": pools, "pods": pods, "rollouts": rollouts, "versions": versions,
        });
        self.order(&order).map(drop)
    }

    /// Waits until every Rollout was looked at.
    pub(super) fn reconciled(&mut self) -> Result<()> {
        self.order(&json!({ "order": "reconciled" })).map(drop)
    }

    /// From now on routers stay behind what is split, or not any more.
    pub(super) fn hold(&mut self, held: bool) -> Result<()> {
        self.order(&json!({ "order": "hold", "held": held })).map(drop)
    }

    /// Wants this version in so many pools, and waits until steps are under way there.
    pub(super) fn begin(&mut self, count: u16, version: u16) -> Result<()> {
        self.order(&json!({ "order": "begin", "count": count, "version": version })).map(drop)
    }

    /// Waits until nothing is under way.
    pub(super) fn settled(&mut self) -> Result<()> {
        self.order(&json!({ "order": "settled" })).map(drop)
    }

    /// Asks for this in so many pools, one after the other; gives the milliseconds of each.
    pub(super) fn wish(&mut self, verb: &str, count: u16) -> Result<Vec<f64>> {
        let times = self.order(&json!({ "order": "wish", "verb": verb, "count": count }))?;
        Ok(serde_json::from_value(times)?)
    }

    /// Counts from now on.
    pub(super) fn mark(&mut self) -> Result<()> {
        self.order(&json!({ "order": "mark" })).map(drop)
    }

    /// What was counted.
    pub(super) fn account(&mut self) -> Result<Account> {
        Ok(serde_json::from_value(self.order(&json!({ "order": "account" }))?)?)
    }

    fn order(&mut self, order: &Value) -> Result<Value> {
        process::fail_if_interrupted()?;
        writeln!(self.orders, "{order}")?;
        self.orders.flush()?;
        let line = self.line()?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("no answer: {line}"))?;
        match answer.get("failed") {
            Some(why) => Err(anyhow!("{order}: {}", why.as_str().unwrap_or_default())),
            None => Ok(answer.get("done").cloned().unwrap_or_default()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            process::fail_if_interrupted()?;
            bail!("the population has ended; what it said stands above");
        }
        Ok(line.trim().to_owned())
    }
}
