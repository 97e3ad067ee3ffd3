//! The testbed of the soak: an API server whose rules change, three replicas of the program, and an Envoy with the
//! shipped configuration except for addresses.

use super::{
    ledger::{ReplicaKill, RuleTimeline, SoakLedger},
    model_server, now,
};
use anyhow::{Context as _, Result, ensure};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use rollora_api::rewrite::RewriteGroup;
use rollora_e2e::rule_recorder::{RouterDiscovery, RuleRecorder};
use rollora_testbed::{
    control_plane::ControlPlane,
    http::{self, ListenAddress},
    ports::ReservedPort,
    process::{ChildProcess, built_program, wait_exit},
    tools::ENVOY,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub(super) const REPLICAS: usize = 3;
const POOL: &str = "pool";
const OLDER_REWRITE: &str = "steady";
const YOUNGER_REWRITE: &str = "younger";
const RULE_INTERVAL: Duration = Duration::from_millis(100);
const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

/// Per generation, when the API server had its rules: the earliest start and the latest end, `None` for the current
/// one.
type RuleWriteTimes = Arc<Mutex<Vec<(Instant, Option<Instant>)>>>;

pub(super) struct SoakTestbed {
    envoy: ChildProcess,
    gateway: ReservedPort,
    admin: ReservedPort,
    replicas: Vec<ExtProcReplica>,
    outages: Vec<ReplicaKill>,
    /// The metrics addresses of the replicas that run now.
    live_replicas: Arc<Mutex<Vec<ListenAddress>>>,
    rules_log: RuleRecorder,
    rule_writes: RuleWriteTimes,
    rule_writer: JoinSet<Result<()>>,
    kubeconfig: PathBuf,
    namespace: String,
    _model_server: JoinSet<()>,
    folder: TempDir,
}

struct ExtProcReplica {
    name: String,
    ports: [ReservedPort; 3],
    process: Option<ChildProcess>,
}

impl SoakTestbed {
    pub(super) async fn start(ledger: &Arc<SoakLedger>) -> Result<Self> {
        let plane = ControlPlane::shared().await?;
        let namespace = plane.create_namespace("soak").await?;
        let kind = GroupVersionKind::gvk(RewriteGroup::Current.name(), "v1alpha2", "InferenceModelRewrite");
        let rewrites: Api<DynamicObject> =
            Api::namespaced_with(plane.admin_client().await?, &namespace, &ApiResource::from_gvk(&kind));
        let rule_writes = RuleWriteTimes::new(Mutex::new(vec![(now(), None)]));
        rewrites.create(&PostParams::default(), &rewrite_object(OLDER_REWRITE, &generation_rules(0))?).await?;

        let folder = tempfile::tempdir()?;
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let ports = [ReservedPort::reserve()?, ReservedPort::reserve()?, ReservedPort::reserve()?];
            replicas.push(ExtProcReplica { name: format!("ext-proc-{number}"), ports, process: None });
        }
        let mut tasks = JoinSet::new();
        let models = model_server::start(ledger, &mut tasks).await;
        let (gateway, admin) = (ReservedPort::reserve()?, ReservedPort::reserve()?);
        let file = folder.path().join("envoy.json");
        let processors: Vec<_> = replicas.iter().map(|replica| replica.ports[0].address()).collect();
        fs::write(&file, envoy_bootstrap(&gateway, &admin, models, &processors)?.to_string())?;
        let mut envoy = Command::new(ENVOY.program("envoy")?);
        envoy.arg("-c").arg(&file).args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]);

        let live_replicas = Arc::<Mutex<Vec<ListenAddress>>>::default();
        let discovered = Arc::clone(&live_replicas);
        let routers: RouterDiscovery =
            Arc::new(move || discovered.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let mut testbed = Self {
            envoy: ChildProcess::start("envoy", envoy, folder.path())?,
            gateway,
            admin,
            replicas,
            outages: Vec::new(),
            live_replicas,
            rules_log: RuleRecorder::start(&routers, "red"),
            rule_writes: Arc::clone(&rule_writes),
            rule_writer: JoinSet::new(),
            kubeconfig: plane.admin_kubeconfig(),
            namespace,
            _model_server: tasks,
            folder,
        };
        for number in 0..REPLICAS {
            testbed.start_replica(number).await?;
        }
        testbed.wait_for_envoy().await?;
        testbed.rule_writer.spawn(write_rules(rewrites, rule_writes));
        Ok(testbed)
    }

    /// Waits until Envoy listens and regards every replica as healthy.
    async fn wait_for_envoy(&self) -> Result<()> {
        let (admin, start) = (ListenAddress::from(self.admin.address()), now());
        let line = "cluster.rollora-ext-proc.membership_healthy: 3";
        loop {
            let stats =
                http::send_request(&admin, http::request("GET", "/stats?filter=membership_healthy", None)).await;
            if stats.is_ok_and(|(_, stats)| String::from_utf8_lossy(&stats).contains(line)) {
                return Ok(());
            }
            ensure!(
                self.envoy.exit_reason().is_none() && start.elapsed() < WAIT_TIMEOUT,
                "{}",
                self.envoy.log_tail(20)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn gateway(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Returns the number of kills so far.
    pub(super) fn kill_count(&self) -> usize {
        self.outages.len()
    }

    /// Fails if Envoy or the writer of rules has ended.
    pub(super) fn assert_running(&mut self) {
        assert!(self.envoy.exit_reason().is_none(), "{}", self.envoy.log());
        let stopped = self.rule_writer.try_join_next();
        assert!(stopped.is_none(), "the writer of rules has ended: {stopped:?}");
    }

    /// Kills `count` consecutive replicas, and starts them again after `away`; returns when they serve.
    pub(super) async fn kill_replicas(&mut self, first: usize, count: usize, away: Duration) -> Result<()> {
        let numbers: Vec<_> = (first..first + count).map(|number| number % REPLICAS).collect();
        for &number in &numbers {
            let replica = &mut self.replicas[number];
            let process = replica.process.take().context("the replica is not running")?;
            let from = now();
            process.signal(Signal::KILL);
            wait_exit(&process, WAIT_TIMEOUT).await?;
            self.outages.push(ReplicaKill { signaled_at: from, exited_at: now() });
            let gone = replica.metrics_address();
            self.live_replicas.lock().unwrap_or_else(PoisonError::into_inner).retain(|address| *address != gone);
        }
        tokio::time::sleep(away).await;
        for number in numbers {
            self.start_replica(number).await?;
        }
        Ok(())
    }

    async fn start_replica(&mut self, number: usize) -> Result<()> {
        let replica = &mut self.replicas[number];
        let mut command = Command::new(built_program("rollora-ext-proc")?);
        command.env("KUBECONFIG", &self.kubeconfig).env("RUST_LOG", "warn");
        command.args(["--pool", POOL, "--namespace", &self.namespace, "--address", "127.0.0.1"]);
        for (flag, port) in ["--grpc-port", "--grpc-health-port", "--metrics-port"].iter().zip(&replica.ports) {
            command.arg(flag).arg(port.number().to_string());
        }
        // Polled from the start of its process, so that the recorder observes its first rules.
        self.live_replicas.lock().unwrap_or_else(PoisonError::into_inner).push(replica.metrics_address());
        let process = replica.process.insert(ChildProcess::start(&replica.name, command, self.folder.path())?);
        let (metrics, start) = (ListenAddress::from(replica.ports[2].address()), now());
        while !http::send_request(&metrics, http::request("GET", "/readyz", None))
            .await
            .is_ok_and(|(status, _)| status == 200)
        {
            ensure!(process.exit_reason().is_none() && start.elapsed() < WAIT_TIMEOUT, "{}", process.log_tail(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops the writer of rules; returns when each generation was active, and the kills.
    pub(super) async fn stop(mut self) -> (RuleTimeline, Vec<ReplicaKill>) {
        self.rule_writer.shutdown().await;
        let rule_writes = self.rule_writes.lock().unwrap_or_else(PoisonError::into_inner);
        (RuleTimeline::new(&self.rules_log.histories(), &rule_writes, now()), self.outages)
    }
}

impl ExtProcReplica {
    fn metrics_address(&self) -> ListenAddress {
        self.ports[2].address().into()
    }
}

/// Returns the rules of a generation: each alias has two targets, weighted by the generation.
fn generation_rules(generation: usize) -> Value {
    let weight = 1 + generation * 37 % 99;
    let rule = |alias: &str| {
        let target = |side: &str, weight: usize| {
            let name = format!("{alias}-{generation}-{side}");
            json!({ "modelRewrite": name, "weight": weight })
        };
        json!({
            "matches": [{ "model": { "value": alias } }],
            "targets": [target("left", weight), target("right", 100 - weight)],
        })
    };
    json!([rule("red"), rule("blue")])
}

fn rewrite_object(name: &str, rules: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": RewriteGroup::Current.api_version(), "kind": "InferenceModelRewrite",
        "metadata": { "name": name },
        "spec": { "poolRef": { "name": POOL }, "rules": rules },
    }))?)
}

/// Writes a new generation at each interval, and creates and deletes a younger rewrite whose rules must never be
/// active.
async fn write_rules(rewrites: Api<DynamicObject>, rule_writes: RuleWriteTimes) -> Result<()> {
    let mut ticks = tokio::time::interval(RULE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let younger = json!([{
        "matches": [{ "model": { "value": "red" } }, { "model": { "value": "blue" } }],
        "targets": [{ "modelRewrite": "never" }],
    }]);
    for generation in 1.. {
        ticks.tick().await;
        rule_writes.lock().unwrap_or_else(PoisonError::into_inner).push((now(), None));
        let patch = Patch::Merge(json!({ "spec": { "rules": generation_rules(generation) } }));
        rewrites.patch(OLDER_REWRITE, &PatchParams::default(), &patch).await?;
        if let Some(before) = rule_writes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(generation - 1) {
            before.1 = Some(now());
        }
        match generation % 20 {
            // Created in another second than the steady rewrite, because the older one takes precedence.
            15 => drop(rewrites.create(&PostParams::default(), &rewrite_object(YOUNGER_REWRITE, &younger)?).await?),
            19 => drop(rewrites.delete(YOUNGER_REWRITE, &DeleteParams::default()).await?),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the shipped configuration with the addresses of the testbed and with an admin interface.
fn envoy_bootstrap(
    gateway: &ReservedPort,
    admin: &ReservedPort,
    models: SocketAddr,
    processors: &[SocketAddr],
) -> Result<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/ext-proc/envoy.yaml");
    let mut shipped: Value = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
    shipped["admin"] = json!({ "address": socket_address(admin.address()) });
    let resources = &mut shipped["static_resources"];
    resources["listeners"][0]["address"] = socket_address(gateway.address());
    for (index, (name, endpoints)) in [("vllm", &[models][..]), ("rollora-ext-proc", processors)].iter().enumerate() {
        let cluster = &mut resources["clusters"][index];
        ensure!(cluster["name"] == *name, "the clusters of envoy.yaml have changed");
        cluster["type"] = json!("STATIC");
        let endpoints: Vec<_> =
            endpoints.iter().map(|address| json!({ "endpoint": { "address": socket_address(*address) } })).collect();
        cluster["load_assignment"]["endpoints"] = json!([{ "lb_endpoints": endpoints }]);
    }
    Ok(shipped)
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
