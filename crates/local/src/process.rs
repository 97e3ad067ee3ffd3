//! Everything of one machine in one process: a sidecar beside each server, the operator, the gateway, the control
//! socket.

use crate::{
    admin, clock,
    config::LocalConfig,
    control::{self, ControlError, ControlServer},
    document_store::{LocalDocumentStore, OpenError},
    fleet::{LocalFleet, SidecarHandle},
    gateway::{
        BodyLimits, Gateway, serve,
        servers::{GatewayServer, GatewayServers},
    },
    input,
    startup::{self, wait_for_servers},
    state::{StateError, StateFolder},
};
use rollora_operator::Operator;
use rollora_sidecar::{RefreshCallback, Sidecar, SidecarConfig};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How much of all requests' bodies is held.
const MAX_BUFFERED_BYTES: usize = 256 << 20;
/// An adapter that was used within this time is not unloaded. The operator has waited for quiet before it unlists one;
/// this is for the request that was on its way when a person did.
const UNLOAD_GRACE: Duration = Duration::from_secs(2);
/// How long the first request waits at most for news of the servers.
const STARTUP_TIMEOUTS: startup::StartupTimeouts =
    startup::StartupTimeouts { all_known: Duration::from_secs(1), first_ready: Duration::from_secs(10) };
/// How long answers may take yet when the process is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// How long everything else may take to end.
const TASK_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Why `rollora local` ends without having been told to.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// One or both of the files; a problem a line.
    #[error("{}", .0.join("\n"))]
    Input(Vec<String>),
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state could not be written.
    #[error("the state cannot be written: {0}")]
    Write(crate::state::WriteError),
    /// An address is taken, or not this machine's.
    #[error("{option} {address}: cannot listen there: {source}; give another address, or end who listens there")]
    Listen {
        /// The option.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No client of a server could be made.
    #[error("--vllm {server}: {source}")]
    Server {
        /// The server.
        server: String,
        /// Why not.
        source: rollora_vllm::VllmClientError,
    },
    /// A part ended that should run for as long as the process.
    #[error("{task} ended unexpectedly{}", .reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Task {
        /// Which part.
        task: &'static str,
        /// Why, where it says so.
        reason: Option<String>,
    },
}

impl From<OpenError> for LocalError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Input(problems) => Self::Input(problems),
            OpenError::State(error) => Self::State(error),
            OpenError::Write(error) => Self::Write(error),
        }
    }
}

/// The parts that run, each with its name.
type Tasks = JoinSet<(&'static str, Option<String>)>;

/// Runs until `stop`, then lets answers end.
pub async fn run(config: LocalConfig, stop: CancellationToken) -> Result<(), LocalError> {
    let folder = StateFolder::open(&config.state)?;
    let socket = folder.document_path(control::SOCKET_NAME);
    let store = LocalDocumentStore::open(folder, config.inputs.clone())?;
    let listener = bind_listener("--listen", config.listen).await?;
    let status_listener = match config.status_listen {
        Some(address) => Some(bind_listener("--status-listen", address).await?),
        None => None,
    };
    let control_listener = control::bind(&config.state)?;

    // Answers that are under way need everything but new requests, so two things are stopped, one after the other.
    let ended = CancellationToken::new();
    let mut parts = Tasks::new();
    let fleet = start_fleet(&config, &store, &mut parts, &ended)?;
    start_operator(&store, &fleet, &mut parts, &ended);
    let listen = listener.local_addr().unwrap_or(config.listen);
    let control = ControlServer { store: store.clone(), fleet: fleet.clone(), listen, stop: ended.clone() };
    parts.spawn(async { ("the control socket", error_text(control::serve(control_listener, control).await)) });
    if let Some(listener) = status_listener {
        let serving = admin::serve(listener, store.clone(), fleet.clone(), ended.clone());
        parts.spawn(async { ("the status server", error_text(serving.await)) });
    }
    let limits = BodyLimits { per_request: config.max_body, total: MAX_BUFFERED_BYTES };
    let gateway = Arc::new(Gateway::new(Arc::clone(fleet.servers()), Arc::clone(store.rules()), limits));
    let serving = async {
        stop.run_until_cancelled(wait_for_servers(fleet.sidecar_statuses(), STARTUP_TIMEOUTS)).await;
        fleet.refresh();
        tracing::info!(%listen, servers = config.servers.len(), "gateway listens");
        serve::serve(listener, gateway, stop.clone(), SHUTDOWN_GRACE).await;
    };

    let result = tokio::select! {
        () = serving => Ok(()),
        Some(ended) = parts.join_next() => Err(task_ended(ended)),
    };
    ended.cancel();
    // What does not end by now has nothing to lose: every write is whole or not there.
    drop(timeout(TASK_END_TIMEOUT, async { while parts.join_next().await.is_some() {} }).await);
    drop(std::fs::remove_file(socket));
    result
}

async fn bind_listener(option: &'static str, address: SocketAddr) -> Result<TcpListener, LocalError> {
    TcpListener::bind(address).await.map_err(|source| LocalError::Listen { option, address, source })
}

fn error_text<E: std::fmt::Display>(result: Result<(), E>) -> Option<String> {
    result.err().map(|error| error.to_string())
}

fn task_ended(ended: Result<(&'static str, Option<String>), tokio::task::JoinError>) -> LocalError {
    match ended {
        Ok((part, why)) => LocalError::Task { task: part, reason: why },
        Err(error) => LocalError::Task { task: "a part", reason: Some(error.to_string()) },
    }
}

fn start_fleet(
    config: &LocalConfig,
    store: &LocalDocumentStore,
    parts: &mut Tasks,
    stop: &CancellationToken,
) -> Result<LocalFleet, LocalError> {
    let (bell, connections) = (Arc::new(Notify::new()), TaskTracker::new());
    let (mut servers, mut members, mut sidecars) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in &config.servers {
        let (name, doubts) = (endpoint.authority(), Arc::new(Notify::new()));
        let (host, tasks) = (endpoint.host(), connections.clone());
        let server =
            GatewayServer::new(name.clone(), host, endpoint.port(), tasks, Arc::clone(&bell), Arc::clone(&doubts));
        servers.push(Arc::new(server));
        let mut behaviour = SidecarConfig::new(name.clone(), endpoint.clone());
        behaviour.policy.unload_grace = UNLOAD_GRACE;
        let (desired, wanted) = watch::channel(None);
        let sidecar = Sidecar::new(behaviour, wanted);
        let (sidecar, status) = sidecar.map_err(|source| LocalError::Server { server: name, source })?;
        let (url, pulse, onlookers) = (endpoint.base_url().to_owned(), sidecar.heartbeat(), sidecar.usage_poll_boost());
        members.push(SidecarHandle { url, desired, status, heartbeat: pulse, usage_poll_boost: onlookers });
        sidecars.push(sidecar.with_suspect_notify(doubts));
    }
    let fleet = LocalFleet::new(store.clone(), Arc::new(GatewayServers::new(servers)), members, bell);
    fleet.refresh();
    for (index, sidecar) in sidecars.into_iter().enumerate() {
        let sidecar = sidecar.with_refresh(refresh_hook(store, &fleet)).run(stop.clone());
        parts.spawn(async { ("a sidecar", run_to_end(sidecar).await) });
        let following = fleet.clone();
        parts.spawn(async move { ("the ear for a sidecar", run_to_end(following.watch_sidecar(index)).await) });
    }
    let (following, token) = (fleet.clone(), stop.clone());
    parts.spawn(async move { ("the fleet", run_until_stopped(token, following.run()).await) });
    let (sweeping, token) = (Arc::clone(fleet.servers()), stop.clone());
    parts.spawn(async move {
        ("the sweep of connections", run_until_stopped(token, sweep_idle_connections(sweeping)).await)
    });
    let watching = input::watch_files(store.clone(), stop.clone());
    parts.spawn(async { ("the watch of the files", run_to_end(watching).await) });
    Ok(fleet)
}

fn start_operator(store: &LocalDocumentStore, fleet: &LocalFleet, parts: &mut Tasks, stop: &CancellationToken) {
    let operator = Operator::new(store.clone(), fleet.clone(), clock::now);
    let stop = stop.clone();
    parts.spawn(async move { ("the operator", error_text(operator.run(stop).await)) });
}

/// Before an adapter is unloaded, its file is read once more.
fn refresh_hook(store: &LocalDocumentStore, fleet: &LocalFleet) -> RefreshCallback {
    let (store, fleet) = (store.clone(), fleet.clone());
    Arc::new(move || {
        let (store, fleet) = (store.clone(), fleet.clone());
        Box::pin(async move {
            input::reload_adapters(&store).await;
            fleet.refresh();
        })
    })
}

async fn sweep_idle_connections(servers: Arc<GatewayServers>) {
    let mut every = interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        servers.sweep();
    }
}

async fn run_until_stopped(stop: CancellationToken, part: impl Future<Output = ()>) -> Option<String> {
    stop.run_until_cancelled(part).await;
    None
}

async fn run_to_end(part: impl Future<Output = ()>) -> Option<String> {
    part.await;
    None
}
