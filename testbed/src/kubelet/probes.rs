//! Probes: a container is probed periodically, and the result changes after a number of equal outcomes in a row.

use super::expansion::MountPaths;
use crate::http::{self, ListenAddress};
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::{collections::BTreeMap, net::Ipv4Addr, process::Stdio, time::Duration};
use tokio::net::TcpStream;

/// Minimum time between the start of a container and its first probe: a real kubelet takes at least as long to notice
/// that the container runs.
const MIN_INITIAL_DELAY: Duration = Duration::from_millis(250);

/// One probe of one container.
#[derive(Debug, Clone)]
pub(super) struct Prober {
    probe: Probe,
    address: Ipv4Addr,
    /// Named ports of the container.
    ports: BTreeMap<String, i32>,
    mounts: MountPaths,
    env: BTreeMap<String, String>,
}

/// Counts equal outcomes in a row. Pure.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThresholdCounter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    streak: i32,
}

impl ThresholdCounter {
    fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            streak: 0,
        }
    }

    /// Returns the result, or `None` if the threshold is not reached.
    pub(super) fn record(&mut self, success: bool) -> Option<bool> {
        self.streak = if self.last == Some(success) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.streak >= threshold).then_some(success)
    }
}

impl Prober {
    pub(super) fn new(
        probe: &Probe,
        container: &Container,
        address: Ipv4Addr,
        mounts: &MountPaths,
        env: &BTreeMap<String, String>,
    ) -> Self {
        let named = |port: &k8s_openapi::api::core::v1::ContainerPort| Some((port.name.clone()?, port.container_port));
        let ports = container.ports.iter().flatten().filter_map(named).collect();
        Self { probe: probe.clone(), address, ports, mounts: mounts.clone(), env: env.clone() }
    }

    /// Returns the grace period that this probe defines for a container that it fails.
    pub(super) fn termination_grace(&self) -> Option<Duration> {
        self.probe.termination_grace_period_seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs()))
    }

    /// Probes until `on_result` returns [`ProbeFlow::Stop`]; it receives every result with the error message of the
    /// last probe, which is empty after a success.
    pub(super) async fn run(&self, mut on_result: impl FnMut(bool, &str) -> ProbeFlow) {
        let seconds = |value: Option<i32>, default| Duration::from_secs(value.unwrap_or(default).unsigned_abs().into());
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0).max(MIN_INITIAL_DELAY)).await;
        let mut counter = ThresholdCounter::new(&self.probe);
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limit = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let outcome = tokio::time::timeout(limit, self.probe_once()).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no response in {limit:?}")));
            let message = outcome.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
            if let Some(result) = counter.record(outcome.is_ok())
                && on_result(result, &message) == ProbeFlow::Stop
            {
                return;
            }
        }
    }

    async fn probe_once(&self) -> Result<()> {
        if let Some(get) = &self.probe.http_get {
            self.probe_http(get).await
        } else if let Some(tcp) = &self.probe.tcp_socket {
            TcpStream::connect((self.address, self.resolve_port(&tcp.port)?)).await.map(drop).map_err(Into::into)
        } else if let Some(exec) = &self.probe.exec {
            self.probe_exec(exec).await
        } else {
            bail!("the kubelet stand-in does not support this kind of probe")
        }
    }

    async fn probe_http(&self, get: &HTTPGetAction) -> Result<()> {
        let plain = get.scheme.as_deref().is_none_or(|scheme| scheme.eq_ignore_ascii_case("http"));
        ensure!(plain && get.host.is_none(), "the kubelet stand-in probes only the pod itself, over plain HTTP");
        let address = ListenAddress::Tcp((self.address, self.resolve_port(&get.port)?).into());
        let mut request = http::request("GET", get.path.as_deref().unwrap_or("/"), None);
        for header in get.http_headers.iter().flatten() {
            let name: hyper::header::HeaderName = header.name.parse()?;
            request.headers_mut().insert(name, header.value.parse()?);
        }
        let (status, body) = http::send_request(&address, request).await?;
        let body: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        ensure!((200..400).contains(&status.as_u16()), "HTTP probe failed with statuscode: {} {body}", status.as_u16());
        Ok(())
    }

    async fn probe_exec(&self, action: &ExecAction) -> Result<()> {
        run_exec(action, &self.mounts, &self.env).await
    }

    fn resolve_port(&self, port: &IntOrString) -> Result<u16> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                *self.ports.get(name).with_context(|| format!("the container has no port named {name:?}"))?
            }
        };
        u16::try_from(number).with_context(|| format!("{number} is not a port number"))
    }
}

/// Runs a command with the container's paths and environment; a non-zero exit code is an error.
pub(super) async fn run_exec(action: &ExecAction, mounts: &MountPaths, env: &BTreeMap<String, String>) -> Result<()> {
    let words: Vec<_> = action.command.iter().flatten().map(|word| mounts.translate(word)).collect();
    let (program, arguments) = words.split_first().context("the command is empty")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().envs(env).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{} {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Whether probing continues after a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeFlow {
    Continue,
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_requires_threshold_of_equal_outcomes_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = ThresholdCounter::new(&probe);
        let outcomes = [true, true, true, false, false, true, false, false, false, false, true, true];
        let results: Vec<_> = outcomes.into_iter().map(|outcome| counter.record(outcome)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(results, [None, yes, yes, None, None, None, None, None, no, no, None, yes]);
    }
}
