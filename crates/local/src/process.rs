//! All tasks of Rollora in one process: a sidecar for each server, the operator, the gateway and the control socket.

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

/// Limit on the bytes of all request bodies that are buffered at the same time.
const MAX_BUFFERED_BYTES: usize = 256 << 20;
/// An adapter that was used within this time is not unloaded. The operator waits until an adapter is idle before it
/// unlists it; this protects a request that was on its way when a person unlisted the adapter.
const UNLOAD_GRACE: Duration = Duration::from_secs(2);
/// Maximum times for which the first request waits until the state of the servers is known.
const STARTUP_TIMEOUTS: startup::StartupTimeouts =
    startup::StartupTimeouts { all_known: Duration::from_secs(1), first_ready: Duration::from_secs(10) };
/// Time for responses in flight to end after a shutdown request.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// Additional time for all other tasks to end.
const TASK_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Error that ends `rollora local`.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// One or both input files are invalid; one problem per line.
    #[error("{}", .0.join("\n"))]
    Input(Vec<String>),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state could not be written.
    #[error("the state cannot be written: {0}")]
    Write(crate::state::WriteError),
    /// An address is in use, or it does not belong to this machine.
    #[error("{option} {address}: cannot listen there: {source}; give another address, or stop the process using it")]
    Listen {
        /// The command-line option that gave the address.
        option: &'static str,
        /// The address as given.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The control socket could not be created.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The HTTP client for a server could not be created.
    #[error("--vllm {server}: {source}")]
    Server {
        /// Host and port of the server.
        server: String,
        /// Error of the client.
        source: rollora_vllm::VllmClientError,
    },
    /// A task ended that should run as long as the process.
    #[error("{task} ended unexpectedly{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Task {
        /// What the task does, as in "the operator".
        task: &'static str,
        /// Why it ended. `None` if it ended without an error.
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

/// The running tasks. Each returns its name, and its error if it has one.
type Tasks = JoinSet<(&'static str, Option<String>)>;

/// Runs all tasks until `stop` is canceled, then waits until responses in flight have ended, for at most 30 s.
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

    // Responses in flight need everything except the listener, so the shutdown has two stages.
    let stop_tasks = CancellationToken::new();
    let mut tasks = Tasks::new();
    let fleet = start_fleet(&config, &store, &mut tasks, &stop_tasks)?;
    start_operator(&store, &fleet, &mut tasks, &stop_tasks);
    let listen = listener.local_addr().unwrap_or(config.listen);
    let control = ControlServer { store: store.clone(), fleet: fleet.clone(), listen, stop: stop_tasks.clone() };
    tasks.spawn(async { ("the control socket", error_text(control::serve(control_listener, control).await)) });
    if let Some(listener) = status_listener {
        let serving = admin::serve(listener, store.clone(), fleet.clone(), stop_tasks.clone());
        tasks.spawn(async { ("the status server", error_text(serving.await)) });
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
        Some(ended) = tasks.join_next() => Err(task_ended(ended)),
    };
    stop_tasks.cancel();
    // A task that has not ended by now loses nothing: every write is atomic.
    drop(timeout(TASK_END_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await);
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
        Ok((task, reason)) => LocalError::Task { task, reason },
        Err(error) => LocalError::Task { task: "a task", reason: Some(error.to_string()) },
    }
}

fn start_fleet(
    config: &LocalConfig,
    store: &LocalDocumentStore,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> Result<LocalFleet, LocalError> {
    let (drained, connections) = (Arc::new(Notify::new()), TaskTracker::new());
    let (mut servers, mut handles, mut sidecars) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in &config.servers {
        let (name, suspect_notify) = (endpoint.authority(), Arc::new(Notify::new()));
        let (host, port, connections) = (endpoint.host(), endpoint.port(), connections.clone());
        let server = GatewayServer::new(
            name.clone(),
            host,
            port,
            connections,
            Arc::clone(&drained),
            Arc::clone(&suspect_notify),
        );
        servers.push(Arc::new(server));
        let mut sidecar_config = SidecarConfig::new(name.clone(), endpoint.clone());
        sidecar_config.policy.unload_grace = UNLOAD_GRACE;
        let (desired, desired_rx) = watch::channel(None);
        let sidecar = Sidecar::new(sidecar_config, desired_rx);
        let (sidecar, status) = sidecar.map_err(|source| LocalError::Server { server: name, source })?;
        let (url, heartbeat, usage_poll_boost) =
            (endpoint.base_url().to_owned(), sidecar.heartbeat(), sidecar.usage_poll_boost());
        handles.push(SidecarHandle { url, desired, status, heartbeat, usage_poll_boost });
        sidecars.push(sidecar.with_suspect_notify(suspect_notify));
    }
    let fleet = LocalFleet::new(store.clone(), Arc::new(GatewayServers::new(servers)), handles, drained);
    fleet.refresh();
    for (index, sidecar) in sidecars.into_iter().enumerate() {
        let sidecar = sidecar.with_refresh(refresh_callback(store, &fleet)).run(stop.clone());
        tasks.spawn(async { ("a sidecar", run_to_end(sidecar).await) });
        let fleet = fleet.clone();
        tasks.spawn(async move { ("the watch of a sidecar", run_to_end(fleet.watch_sidecar(index)).await) });
    }
    let (refreshed_fleet, token) = (fleet.clone(), stop.clone());
    tasks.spawn(async move { ("the fleet refresh", run_until_stopped(token, refreshed_fleet.run()).await) });
    let (servers, token) = (Arc::clone(fleet.servers()), stop.clone());
    tasks.spawn(async move {
        ("the sweep of idle connections", run_until_stopped(token, sweep_idle_connections(servers)).await)
    });
    let watching = input::watch_files(store.clone(), stop.clone());
    tasks.spawn(async { ("the watch of the input files", run_to_end(watching).await) });
    Ok(fleet)
}

fn start_operator(store: &LocalDocumentStore, fleet: &LocalFleet, tasks: &mut Tasks, stop: &CancellationToken) {
    let operator = Operator::new(store.clone(), fleet.clone(), clock::now);
    let stop = stop.clone();
    tasks.spawn(async move { ("the operator", error_text(operator.run(stop).await)) });
}

/// Returns a callback that re-reads the adapters file before an adapter is unloaded.
fn refresh_callback(store: &LocalDocumentStore, fleet: &LocalFleet) -> RefreshCallback {
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
    let mut ticker = interval(Duration::from_secs(1));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        servers.sweep();
    }
}

async fn run_until_stopped(stop: CancellationToken, task: impl Future<Output = ()>) -> Option<String> {
    stop.run_until_cancelled(task).await;
    None
}

async fn run_to_end(task: impl Future<Output = ()>) -> Option<String> {
    task.await;
    None
}
