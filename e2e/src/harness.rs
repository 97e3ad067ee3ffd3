//! The test bed and its vocabulary: what a person does, and what a person then sees. Scenarios are written over
//! [`Bed`], and know nothing of where it stands; a [`Place`] does.

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

/// How long a condition may take to come true, where a scenario does not say otherwise.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a bed begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The vLLM servers.
    pub servers: Vec<ServerKind>,
    /// What the adapters file lists.
    pub adapters: Vec<ListedAdapter>,
    /// The Rollout.
    pub rollout: RolloutManifest,
    /// The key that the servers ask for.
    pub api_key: Option<String>,
}

impl Setup {
    /// The guide: three simulated servers, v1 listed, 90/10, 50/50 and 0/100 with pauses of this length.
    pub fn guide(pause: Duration) -> Self {
        Self {
            servers: vec![ServerKind::simulated(&["--load-millis", "20", "--token-millis", "2"]); 3],
            adapters: vec![ListedAdapter::new(V1, SOURCE)],
            rollout: RolloutManifest::guide(pause),
            api_key: None,
        }
    }

    /// The same, waiting at 50/50 until somebody promotes.
    pub fn pause_at_half(pause: Duration) -> Self {
        Self { rollout: RolloutManifest::pause_at_half(pause), ..Self::guide(pause) }
    }

    /// The same with these flags for every simulated server.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        for server in &mut self.servers {
            if let ServerKind::Simulated { flags: known } = server {
                known.extend(flags.iter().map(|&flag| flag.to_owned()));
            }
        }
        self
    }

    /// The adapters file.
    pub fn adapters_yaml(&self) -> String {
        files::adapters_yaml(BASE_MODEL, &self.adapters)
    }
}

/// Where a bed stands.
pub trait Environment: Sized + Send + Sync {
    /// Starts everything.
    fn start(setup: &Setup) -> impl Future<Output = Result<Self>> + Send;
    /// Where clients send their requests.
    fn gateway(&self) -> ListenAddress;
    /// Where each router can be asked for `/rules`.
    fn routers(&self) -> Vec<ListenAddress>;
    /// The routers that may serve a request, at any moment from now on.
    fn router_discovery(&self) -> RouterDiscovery;
    /// The vLLM servers.
    fn servers(&self) -> &[VllmServer];
    /// The vLLM servers, to be killed and started.
    fn servers_mut(&mut self) -> &mut [VllmServer];
    /// The adapters file as it stands.
    fn adapters_yaml(&self) -> impl Future<Output = Result<String>> + Send;
    /// Saves the adapters file.
    fn write_adapters(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Saves the adapters file where it still says `before`; says whether it did. A person who edits a file on this
    /// machine looks at it first; whoever edits an object is told that it has changed.
    fn compare_and_write_adapters(&self, before: &str, text: &str) -> impl Future<Output = Result<bool>> + Send;
    /// The Rollout as it was saved.
    fn rollout_yaml(&self) -> impl Future<Output = Result<String>> + Send;
    /// Saves the Rollout.
    fn write_rollout(&self, text: &str) -> impl Future<Output = Result<()>> + Send;
    /// Looks at everything.
    fn snapshot(&self) -> impl Future<Output = SystemSnapshot> + Send;
    /// Runs a verb of `rollora`.
    fn run_cli(&self, arguments: &[&str]) -> impl Future<Output = Result<CommandOutput>> + Send;
    /// Whether the gateway goes with the operator, because one process is both.
    fn gateway_runs_in_operator(&self) -> bool;
    /// Whether a server that tries an adapter first has no requests meanwhile: a gateway of ours sees to that, others
    /// know nothing of it.
    fn pilot_is_isolated(&self) -> bool;
    /// When rewrites were written since the beginning, where somebody keeps a record of that.
    fn rewrite_write_times(&self) -> Result<Vec<Instant>> {
        Ok(Vec::new())
    }
    /// Ends the operator as `kill -9` does.
    fn kill_operator(&mut self);
    /// Starts it again on what it left.
    fn start_operator(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// The ends of all logs.
    fn logs(&self) -> String;
    /// What there is to see besides.
    fn describe_objects(&self) -> impl Future<Output = String> + Send {
        async { String::new() }
    }
}

/// A test bed. Everything it started ends when it is dropped.
#[derive(Debug)]
pub struct Harness<P: Environment> {
    /// Where it stands.
    pub environment: P,
    api_key: Option<String>,
    traffic: Option<(BackgroundTraffic, RuleRecorder)>,
    outages: Vec<ProcessOutage>,
}

impl<P: Environment> Harness<P> {
    /// Starts everything.
    pub async fn start(setup: &Setup) -> Result<Self> {
        Ok(Self {
            environment: P::start(setup).await?,
            api_key: setup.api_key.clone(),
            traffic: None,
            outages: Vec::new(),
        })
    }

    /// A bed at a place that is prepared already.
    pub fn on(environment: P) -> Self {
        Self { environment, api_key: None, traffic: None, outages: Vec::new() }
    }

    /// Clients send this key.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.api_key = key.map(str::to_owned);
        self
    }

    /// Waits until a condition holds.
    pub async fn wait_for(&self, condition: WaitCondition) -> Result<SystemSnapshot> {
        self.wait_for_within(WAIT_TIMEOUT, condition).await
    }

    /// Waits until a condition holds, this long at most; what there is to see is in the error otherwise.
    pub async fn wait_for_within(&self, limit: Duration, condition: WaitCondition) -> Result<SystemSnapshot> {
        self.wait_for_with(limit, condition, |_| {}).await
    }

    /// The same, telling at every look what there is to see.
    pub async fn wait_for_with(
        &self,
        limit: Duration,
        condition: WaitCondition,
        mut tell: impl FnMut(&SystemSnapshot),
    ) -> Result<SystemSnapshot> {
        let start = clock::now();
        loop {
            let seen = self.environment.snapshot().await;
            tell(&seen);
            if condition.holds(&seen) {
                return Ok(seen);
            }
            if start.elapsed() > limit {
                bail!("not seen within {limit:?}: {condition}\n{}", self.diagnostics(&seen).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// For this long a condition holds whenever it is looked.
    pub async fn assert_holds_for(&self, duration: Duration, condition: WaitCondition) -> Result<()> {
        let start = clock::now();
        while start.elapsed() < duration {
            let seen = self.environment.snapshot().await;
            if !condition.holds(&seen) {
                bail!("not true any more: {condition}\n{}", self.diagnostics(&seen).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The beginning of every scenario: v1 is on every server and has all requests, and every server gets some.
    pub async fn wait_for_baseline(&self) -> Result<()> {
        let serves = served_by(MODEL, V1).and(loaded_everywhere(V1));
        self.wait_for(serves.and(all_servers_ready())).await.map(drop)
    }

    /// A person adds a line to the adapters file.
    pub async fn list_adapter(&self, id: &str) -> Result<()> {
        self.list_adapter_from(id, SOURCE).await
    }

    /// The same with another source.
    pub async fn list_adapter_from(&self, id: &str, source: &str) -> Result<()> {
        self.edit_adapters(|text| files::list_adapter(text, &ListedAdapter::new(id, source))).await
    }

    /// A person moves a line of the adapters file to `ensureNotExist`.
    pub async fn unlist_adapter(&self, id: &str) -> Result<()> {
        self.edit_adapters(|text| files::unlist_adapter(text, id)).await
    }

    /// A person takes a line out of the adapters file.
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

    /// Clients begin to send, all the time.
    pub fn start_clients(&mut self, crowd: &LoadProfile) {
        let mut crowd = crowd.clone();
        crowd.connections.iter_mut().for_each(|ask| ask.api_key.clone_from(&self.api_key));
        let rules = RuleRecorder::start(&self.environment.router_discovery(), MODEL);
        self.traffic = Some((BackgroundTraffic::start(&self.environment.gateway(), &crowd), rules));
    }

    /// The clients end, and this is what they saw.
    pub async fn stop_clients(&mut self) -> Result<TrafficRecord> {
        let (traffic, rules) = self.traffic.take().context("no clients were started")?;
        let exchanges = traffic.stop().await;
        Ok(TrafficRecord { exchanges, routers: rules.histories(), outages: self.outages.clone() })
    }

    /// Waits until the clients have sent so many requests.
    pub async fn wait_for_requests(&self, requests: usize) -> Result<()> {
        let (traffic, _) = self.traffic.as_ref().context("no clients were started")?;
        let start = clock::now();
        while traffic.finished_requests() < requests {
            ensure!(start.elapsed() < WAIT_TIMEOUT, "the clients sent only {} requests", traffic.finished_requests());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The clients end, and none of them saw anything wrong.
    pub async fn stop_clients_and_verify(&mut self) -> Result<TrafficRecord> {
        let record = self.stop_clients().await?;
        let verdict = record.verdict();
        if !verdict.is_good() {
            bail!("{verdict}\n{}", self.diagnostics(&self.environment.snapshot().await).await);
        }
        Ok(record)
    }

    /// What the clients saw so far.
    pub fn current_verdict(&self) -> Option<TrafficVerdict> {
        let record = |(traffic, rules): &(BackgroundTraffic, RuleRecorder)| TrafficRecord {
            exchanges: traffic.records(),
            routers: rules.histories(),
            outages: self.outages.clone(),
        };
        self.traffic.as_ref().map(|clients| record(clients).verdict())
    }

    /// The guide's count: 20 requests one after the other.
    pub async fn count_split(&self) -> Result<SplitCount> {
        let ask = ChatRequest::new(MODEL, crate::traffic::ResponseMode::Json, 1).with_key(self.api_key.as_deref());
        count_split(&self.environment.gateway(), &ask, 20).await
    }

    /// What `rollora ARGUMENTS` says; it must end well.
    pub async fn cli_stdout(&self, arguments: &[&str]) -> Result<String> {
        let spoken = self.environment.run_cli(arguments).await?;
        ensure!(spoken.code == 0, "`rollora {}` ended with {spoken:?}", arguments.join(" "));
        Ok(spoken.stdout)
    }

    /// Ends a server as `kill -9` does.
    pub fn kill_server(&mut self, index: usize) {
        let from = clock::now();
        self.environment.servers_mut()[index].kill();
        self.record_server_outage(from, clock::now());
    }

    /// A server began to end at the one moment, and was dead at the other.
    pub(crate) fn record_server_outage(&mut self, from: Instant, dead: Instant) {
        self.outages.push(ProcessOutage { target: KilledProcess::Server, from, dead_at: dead, until: None });
    }

    /// Starts a server where it was, knowing no adapter, and waits until it answers.
    pub async fn start_server(&mut self, index: usize) -> Result<()> {
        let server = &mut self.environment.servers_mut()[index];
        server.start()?;
        server.wait_ready().await
    }

    /// A server has died of an adapter that it tried, since `from`. What it was working on is lost, where it had
    /// requests meanwhile.
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

    /// Ends the operator as `kill -9` does, and on one machine everything but the servers.
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

    /// Starts it again on what it left.
    pub async fn start_operator(&mut self) -> Result<()> {
        self.environment.start_operator().await?;
        if let Some(outage) = self.outages.iter_mut().rev().find(|outage| outage.target == KilledProcess::Gateway) {
            outage.until = Some(clock::now());
        }
        Ok(())
    }

    /// Everything that a person needs who was not there.
    pub async fn diagnostics(&self, seen: &SystemSnapshot) -> String {
        let clients = self.current_verdict().map_or_else(String::new, |verdict| format!("clients: {verdict}\n"));
        let objects = self.environment.describe_objects().await;
        format!("{}{clients}{objects}{}", diagnostics::render(seen), self.environment.logs())
    }
}

impl<P: Environment> Drop for Harness<P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.environment.logs());
        }
    }
}
