//! Everything of one machine in one process: a sidecar beside each server, the operator, the gateway, the control
//! socket.

use crate::{
    clock,
    config::Config,
    control::{self, Control, ControlError},
    fleet::{LocalFleet, Member},
    gateway::{
        Gateway, Limits, serve,
        servers::{Server, Servers},
    },
    input,
    settle::{self, settled},
    state::{StateError, StateFolder},
    store::{LocalStore, OpenError},
    telemetry,
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
const TOTAL_BODIES: usize = 256 << 20;
/// An adapter that was used within this time is not unloaded. The operator has waited for quiet before it unlists one;
/// this is for the request that was on its way when a person did.
const UNLOAD_GRACE: Duration = Duration::from_secs(2);
/// How long the first request waits at most for news of the servers.
const SETTLE: settle::Limits = settle::Limits { each: Duration::from_secs(1), first: Duration::from_secs(10) };
/// How long answers may take yet when the process is told to end.
const GRACE: Duration = Duration::from_secs(30);
/// How long everything else may take to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
    #[error("{part} ended unexpectedly{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Part {
        /// Which part.
        part: &'static str,
        /// Why, where it says so.
        why: Option<String>,
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
type Parts = JoinSet<(&'static str, Option<String>)>;

/// Runs until `stop`, then lets answers end.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), LocalError> {
    let folder = StateFolder::open(&config.state)?;
    let socket = folder.file(control::SOCKET);
    let store = LocalStore::open(folder, config.inputs.clone())?;
    let listener = listen("--listen", config.listen).await?;
    let status_listener = match config.status_listen {
        Some(address) => Some(listen("--status-listen", address).await?),
        None => None,
    };
    let control_listener = control::bind(&config.state)?;

    // Answers that are under way need everything but new requests, so two things are stopped, one after the other.
    let ended = CancellationToken::new();
    let mut parts = Parts::new();
    let fleet = start_fleet(&config, &store, &mut parts, &ended)?;
    start_operator(&store, &fleet, &mut parts, &ended);
    let listen = listener.local_addr().unwrap_or(config.listen);
    let control = Control { store: store.clone(), fleet: fleet.clone(), listen, stop: ended.clone() };
    parts.spawn(async { ("the control socket", why(control::serve(control_listener, control).await)) });
    if let Some(listener) = status_listener {
        let serving = telemetry::serve(listener, store.clone(), fleet.clone(), ended.clone());
        parts.spawn(async { ("the status server", why(serving.await)) });
    }
    let limits = Limits { request: config.max_body, total: TOTAL_BODIES };
    let gateway = Arc::new(Gateway::new(Arc::clone(fleet.servers()), Arc::clone(store.rules()), limits));
    let serving = async {
        stop.run_until_cancelled(settled(fleet.sidecars(), SETTLE)).await;
        fleet.refresh();
        tracing::info!(%listen, servers = config.servers.len(), "gateway listens");
        serve::serve(listener, gateway, stop.clone(), GRACE).await;
    };

    let result = tokio::select! {
        () = serving => Ok(()),
        Some(ended) = parts.join_next() => Err(ended_part(ended)),
    };
    ended.cancel();
    // What does not end by now has nothing to lose: every write is whole or not there.
    drop(timeout(LAST_WORDS, async { while parts.join_next().await.is_some() {} }).await);
    drop(std::fs::remove_file(socket));
    result
}

async fn listen(option: &'static str, address: SocketAddr) -> Result<TcpListener, LocalError> {
    TcpListener::bind(address).await.map_err(|source| LocalError::Listen { option, address, source })
}

fn why<E: std::fmt::Display>(result: Result<(), E>) -> Option<String> {
    result.err().map(|error| error.to_string())
}

fn ended_part(ended: Result<(&'static str, Option<String>), tokio::task::JoinError>) -> LocalError {
    match ended {
        Ok((part, why)) => LocalError::Part { part, why },
        Err(error) => LocalError::Part { part: "a part", why: Some(error.to_string()) },
    }
}

fn start_fleet(
    config: &Config,
    store: &LocalStore,
    parts: &mut Parts,
    stop: &CancellationToken,
) -> Result<LocalFleet, LocalError> {
    let (bell, connections) = (Arc::new(Notify::new()), TaskTracker::new());
    let (mut servers, mut members, mut sidecars) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in &config.servers {
        let (name, doubts) = (endpoint.authority(), Arc::new(Notify::new()));
        let (host, tasks) = (endpoint.host(), connections.clone());
        let server = Server::new(name.clone(), host, endpoint.port(), tasks, Arc::clone(&bell), Arc::clone(&doubts));
        servers.push(Arc::new(server));
        let mut behaviour = SidecarConfig::new(name.clone(), endpoint.clone());
        behaviour.policy.unload_grace = UNLOAD_GRACE;
        let (desired, wanted) = watch::channel(None);
        let sidecar = Sidecar::new(behaviour, wanted);
        let (sidecar, status) = sidecar.map_err(|source| LocalError::Server { server: name, source })?;
        let (url, pulse, onlookers) = (endpoint.base_url().to_owned(), sidecar.heartbeat(), sidecar.usage_poll_boost());
        members.push(Member { url, desired, status, pulse, onlookers });
        sidecars.push(sidecar.with_suspect_notify(doubts));
    }
    let fleet = LocalFleet::new(store.clone(), Arc::new(Servers::new(servers)), members, bell);
    fleet.refresh();
    for (index, sidecar) in sidecars.into_iter().enumerate() {
        let sidecar = sidecar.with_refresh(refresh(store, &fleet)).run(stop.clone());
        parts.spawn(async { ("a sidecar", done(sidecar).await) });
        let following = fleet.clone();
        parts.spawn(async move { ("the ear for a sidecar", done(following.follow_sidecar(index)).await) });
    }
    let (following, token) = (fleet.clone(), stop.clone());
    parts.spawn(async move { ("the fleet", until(token, following.follow()).await) });
    let (sweeping, token) = (Arc::clone(fleet.servers()), stop.clone());
    parts.spawn(async move { ("the sweep of connections", until(token, sweep(sweeping)).await) });
    let watching = input::watch(store.clone(), stop.clone());
    parts.spawn(async { ("the watch of the files", done(watching).await) });
    Ok(fleet)
}

fn start_operator(store: &LocalStore, fleet: &LocalFleet, parts: &mut Parts, stop: &CancellationToken) {
    let operator = Operator::new(store.clone(), fleet.clone(), clock::now);
    let stop = stop.clone();
    parts.spawn(async move { ("the operator", why(operator.run(stop).await)) });
}

/// Before an adapter is unloaded, its file is read once more.
fn refresh(store: &LocalStore, fleet: &LocalFleet) -> RefreshCallback {
    let (store, fleet) = (store.clone(), fleet.clone());
    Arc::new(move || {
        let (store, fleet) = (store.clone(), fleet.clone());
        Box::pin(async move {
            input::read_adapters_now(&store).await;
            fleet.refresh();
        })
    })
}

async fn sweep(servers: Arc<Servers>) {
    let mut every = interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        servers.sweep();
    }
}

async fn until(stop: CancellationToken, part: impl Future<Output = ()>) -> Option<String> {
    stop.run_until_cancelled(part).await;
    None
}

async fn done(part: impl Future<Output = ()>) -> Option<String> {
    part.await;
    None
}
