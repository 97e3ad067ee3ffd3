//! The harness drives one running system in a scenario: user actions, waits, clients and diagnostics. Scenarios use a
//! [`Harness`] and do not depend on what it runs on; an [`Environment`] does.

mod diagnostics;

use crate::{
    conditions::{SystemSnapshot, WaitCondition, all_servers_ready, loaded_everywhere, served_by},
    files::{self, ListedAdapter, RolloutManifest},
    oracle::{KilledProcess, ProcessOutage, TrafficRecord, TrafficVerdict},
    rollora_local::CommandOutput,
    rule_recorder::{RouterDiscovery, RuleRecorder},
    traffic::{BackgroundTraffic, ChatRequest, LoadProfile, SplitCount, count_split},
};
use anyhow::{Context as _, Result, bail, ensure};
use rollora_testbed::{
    clock,
    guide::{BASE_MODEL, MODEL, SOURCE, V1},
    http::ListenAddress,
    server::{ServerKind, VllmServer},
};
use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Time limit for a condition to become true, unless a scenario sets another one.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of the snapshots that the harness takes while it waits.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The initial state of an environment.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The kind of each vLLM server.
    pub servers: Vec<ServerKind>,
    /// The entries of the adapters file.
    pub adapters: Vec<ListedAdapter>,
    /// The Rollout that is applied at the start.
    pub rollout: RolloutManifest,
    /// The API key that the servers require; `None` if they require none.
    pub api_key: Option<String>,
}

impl Setup {
    /// Returns the setup of the guide: three simulated servers, v1 listed, and the steps 90/10, 50/50 and 0/100 with
    /// pauses of this length.
    pub fn guide(pause: Duration) -> Self {
        Self {
            servers: vec![ServerKind::simulated(&["--load-millis", "20", "--token-millis", "2"]); 3],
            adapters: vec![ListedAdapter::new(V1, SOURCE)],
            rollout: RolloutManifest::guide(pause),
            api_key: None,
        }
    }

    /// Returns the setup of the guide with a pause at 50/50 that lasts until a person promotes.
    pub fn pause_at_half(pause: Duration) -> Self {
        Self { rollout: RolloutManifest::pause_at_half(pause), ..Self::guide(pause) }
    }

    /// Adds these flags to every simulated server.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        for server in &mut self.servers {
            if let ServerKind::Simulated { flags: server_flags } = server {
                server_flags.extend(flags.iter().map(|&flag| flag.to_owned()));
            }
        }
        self
    }

    /// Returns the initial text of the adapters file.
    pub fn adapters_yaml(&self) -> String {
        files::adapters_yaml(BASE_MODEL, &self.adapters)
    }
}

/// What a harness runs on: one machine, or the parts of a cluster.
pub trait Environment: Sized + Send + Sync {
    /// Starts everything that the setup describes, and waits until it is ready.
    fn start(setup: &Setup) -> impl Future<Output = Result<Self>> + Send;
    /// Returns the address that clients send their requests to.
    fn gateway(&self) -> ListenAddress;
    /// Returns the `/rules` address of each router that accepts new requests.
    fn routers(&self) -> Vec<ListenAddress>;
    /// Returns a function that lists the routers that may serve a request at the time of each call.
    fn router_discovery(&self) -> RouterDiscovery;
    /// Returns the vLLM servers, in the order of the setup.
    fn servers(&self) -> &[VllmServer];
    /// Returns the vLLM servers, for scenarios that kill and start them.
    fn servers_mut(&mut self) -> &mut [VllmServer];
    /// Reads the current text of the adapters file.
    fn adapters_yaml(&self) -> impl Future<Output = Result<String>> + Send;
    /// Writes the adapters file unconditionally.
    fn write_adapters(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Writes the adapters file if its text is still `before`; returns whether it did. On a cluster this compares the
    /// text and the resource version. On one machine it always writes: a person who edits a local file reads it first.
    fn compare_and_write_adapters(&self, before: &str, text: &str) -> impl Future<Output = Result<bool>> + Send;
    /// Returns the Rollout's text as it was last written.
    fn rollout_yaml(&self) -> impl Future<Output = Result<String>> + Send;
    /// Writes the Rollout's text unconditionally.
    fn write_rollout(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Observes the whole system once.
    fn snapshot(&self) -> impl Future<Output = SystemSnapshot> + Send;
    /// Runs a command of `rollora`.
    fn run_cli(&self, arguments: &[&str]) -> impl Future<Output = Result<CommandOutput>> + Send;
    /// Returns whether the gateway ends with the operator, because one process is both.
    fn gateway_runs_in_operator(&self) -> bool;
    /// Returns whether a server gets no requests while it is the first to try an adapter. Rollora's own gateway ensures
    /// that; other gateways do not.
    fn pilot_is_isolated(&self) -> bool;
    /// Returns the times of all writes of rewrites so far; empty where no audit log records them.
    fn rewrite_write_times(&self) -> Result<Vec<Instant>> {
        Ok(Vec::new())
    }
    /// Kills the operator with SIGKILL.
    fn kill_operator(&mut self);
    /// Starts the operator again on the state that it left.
    fn start_operator(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// Returns the last lines of all logs.
    fn logs(&self) -> String;
    /// Describes further objects for diagnostics.
    fn describe_objects(&self) -> impl Future<Output = String> + Send {
        async { String::new() }
    }
}

/// Drives one running system. Everything that it started ends when it is dropped.
#[derive(Debug)]
pub struct Harness<E: Environment> {
    /// What the system runs on.
    pub environment: E,
    api_key: Option<String>,
    traffic: Option<(BackgroundTraffic, RuleRecorder)>,
    outages: Vec<ProcessOutage>,
}

impl<E: Environment> Harness<E> {
    /// Starts a new environment.
    pub async fn start(setup: &Setup) -> Result<Self> {
        Ok(Self {
            environment: E::start(setup).await?,
            api_key: setup.api_key.clone(),
            traffic: None,
            outages: Vec::new(),
        })
    }

    /// Wraps an environment that is started already.
    pub fn on(environment: E) -> Self {
        Self { environment, api_key: None, traffic: None, outages: Vec::new() }
    }

    /// Sets the API key that clients send.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.api_key = key.map(str::to_owned);
        self
    }

    /// Waits until a condition holds, at most 30 seconds.
    pub async fn wait_for(&self, condition: WaitCondition) -> Result<SystemSnapshot> {
        self.wait_for_within(WAIT_TIMEOUT, condition).await
    }

    /// Waits until a condition holds, at most `limit`; the error has the diagnostics.
    pub async fn wait_for_within(&self, limit: Duration, condition: WaitCondition) -> Result<SystemSnapshot> {
        self.wait_for_with(limit, condition, |_| {}).await
    }

    /// Waits until a condition holds, at most `limit`, and calls `on_poll` with every snapshot.
    pub async fn wait_for_with(
        &self,
        limit: Duration,
        condition: WaitCondition,
        mut on_poll: impl FnMut(&SystemSnapshot),
    ) -> Result<SystemSnapshot> {
        let start = clock::now();
        loop {
            let snapshot = self.environment.snapshot().await;
            on_poll(&snapshot);
            if condition.holds(&snapshot) {
                return Ok(snapshot);
            }
            if start.elapsed() > limit {
                bail!("not within {limit:?}: {condition}\n{}", self.diagnostics(&snapshot).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Fails if any snapshot within `duration` does not satisfy the condition.
    pub async fn assert_holds_for(&self, duration: Duration, condition: WaitCondition) -> Result<()> {
        let start = clock::now();
        while start.elapsed() < duration {
            let snapshot = self.environment.snapshot().await;
            if !condition.holds(&snapshot) {
                bail!("no longer true: {condition}\n{}", self.diagnostics(&snapshot).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits for the start of every scenario: v1 is on every server and has all requests, and every server gets some.
    pub async fn wait_for_baseline(&self) -> Result<()> {
        let serves = served_by(MODEL, V1).and(loaded_everywhere(V1));
        self.wait_for(serves.and(all_servers_ready())).await.map(drop)
    }

    /// Adds an entry to the adapters file, as a person does.
    pub async fn list_adapter(&self, id: &str) -> Result<()> {
        self.list_adapter_from(id, SOURCE).await
    }

    /// Adds an entry with this source, as a person does.
    pub async fn list_adapter_from(&self, id: &str, source: &str) -> Result<()> {
        self.edit_adapters(|text| files::list_adapter(text, &ListedAdapter::new(id, source))).await
    }

    /// Moves an entry of the adapters file to `ensureNotExist`, as a person does.
    pub async fn unlist_adapter(&self, id: &str) -> Result<()> {
        self.edit_adapters(|text| files::unlist_adapter(text, id)).await
    }

    /// Removes an entry from the adapters file, as a person does.
    pub async fn remove_adapter(&self, id: &str) -> Result<()> {
        self.edit_adapters(|text| files::remove_adapter(text, id)).await
    }

    async fn edit_adapters(&self, edit: impl Fn(&str) -> Result<String>) -> Result<()> {
        loop {
            let before = self.environment.adapters_yaml().await?;
            if self.environment.compare_and_write_adapters(&before, &edit(&before)?).await? {
                return Ok(());
            }
        }
    }

    /// Starts background clients, and records the rules of all routers.
    pub fn start_clients(&mut self, load: &LoadProfile) {
        let mut load = load.clone();
        load.connections.iter_mut().for_each(|request| request.api_key.clone_from(&self.api_key));
        let rules = RuleRecorder::start(&self.environment.router_discovery(), MODEL);
        self.traffic = Some((BackgroundTraffic::start(&self.environment.gateway(), &load), rules));
    }

    /// Stops the clients, and returns everything that was recorded.
    pub async fn stop_clients(&mut self) -> Result<TrafficRecord> {
        let (traffic, rules) = self.traffic.take().context("no clients were started")?;
        let exchanges = traffic.stop().await;
        Ok(TrafficRecord { exchanges, routers: rules.histories(), outages: self.outages.clone() })
    }

    /// Waits until the clients have finished this many requests.
    pub async fn wait_for_requests(&self, requests: usize) -> Result<()> {
        let (traffic, _) = self.traffic.as_ref().context("no clients were started")?;
        let start = clock::now();
        while traffic.finished_requests() < requests {
            ensure!(start.elapsed() < WAIT_TIMEOUT, "the clients sent only {} requests", traffic.finished_requests());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Stops the clients, and fails unless the oracle's verdict is good.
    pub async fn stop_clients_and_verify(&mut self) -> Result<TrafficRecord> {
        let record = self.stop_clients().await?;
        let verdict = record.verdict();
        if !verdict.is_good() {
            bail!("{verdict}\n{}", self.diagnostics(&self.environment.snapshot().await).await);
        }
        Ok(record)
    }

    /// Judges what was recorded so far; `None` if no clients run.
    pub fn current_verdict(&self) -> Option<TrafficVerdict> {
        let record = |(traffic, rules): &(BackgroundTraffic, RuleRecorder)| TrafficRecord {
            exchanges: traffic.records(),
            routers: rules.histories(),
            outages: self.outages.clone(),
        };
        self.traffic.as_ref().map(|clients| record(clients).verdict())
    }

    /// Sends the guide's 20 requests one after another, and counts the answers of each version.
    pub async fn count_split(&self) -> Result<SplitCount> {
        let request = ChatRequest::new(MODEL, crate::traffic::ResponseMode::Json, 1).with_key(self.api_key.as_deref());
        count_split(&self.environment.gateway(), &request, 20).await
    }

    /// Runs `rollora ARGUMENTS`, which must succeed, and returns its standard output.
    pub async fn cli_stdout(&self, arguments: &[&str]) -> Result<String> {
        let output = self.environment.run_cli(arguments).await?;
        ensure!(output.code == 0, "`rollora {}` ended with {output:?}", arguments.join(" "));
        Ok(output.stdout)
    }

    /// Kills a server with SIGKILL.
    pub fn kill_server(&mut self, index: usize) {
        let from = clock::now();
        self.environment.servers_mut()[index].kill();
        self.record_server_outage(from, clock::now());
    }

    /// Records that a server began to end at `from`, and was dead at `dead_at`.
    pub(crate) fn record_server_outage(&mut self, from: Instant, dead_at: Instant) {
        self.outages.push(ProcessOutage { target: KilledProcess::Server, from, dead_at, until: None });
    }

    /// Starts a killed server at its old address, without adapters, and waits until it answers.
    pub async fn start_server(&mut self, index: usize) -> Result<()> {
        let server = &mut self.environment.servers_mut()[index];
        server.start()?;
        server.wait_ready().await
    }

    /// Records that a server crashed on an adapter that it was the first to try, at some time since `from`. Its
    /// requests in flight are lost if it had any.
    pub fn record_pilot_crash(&mut self, from: Instant) {
        if !self.environment.pilot_is_isolated() {
            self.outages.push(ProcessOutage {
                target: KilledProcess::Server,
                from,
                dead_at: clock::now(),
                until: None,
            });
        }
    }

    /// Kills the operator with SIGKILL; on one machine the gateway ends with it.
    pub fn kill_operator(&mut self) {
        let from = clock::now();
        self.environment.kill_operator();
        if self.environment.gateway_runs_in_operator() {
            self.outages.push(ProcessOutage {
                target: KilledProcess::Gateway,
                from,
                dead_at: clock::now(),
                until: None,
            });
        }
    }

    /// Starts the operator again on the state that it left.
    pub async fn start_operator(&mut self) -> Result<()> {
        self.environment.start_operator().await?;
        if let Some(outage) = self.outages.iter_mut().rev().find(|outage| outage.target == KilledProcess::Gateway) {
            outage.until = Some(clock::now());
        }
        Ok(())
    }

    /// Returns the snapshot, the verdict so far, further objects and the logs, for the message of a failure.
    pub async fn diagnostics(&self, snapshot: &SystemSnapshot) -> String {
        let clients = self.current_verdict().map_or_else(String::new, |verdict| format!("clients: {verdict}\n"));
        let objects = self.environment.describe_objects().await;
        format!("{}{clients}{objects}{}", diagnostics::render(snapshot), self.environment.logs())
    }
}

impl<E: Environment> Drop for Harness<E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.environment.logs());
        }
    }
}
