//! Lifecycle of the program: connect, acquire the Lease, run the operator, release the Lease.

use crate::{
    admin::{self, AdminState},
    args::{Args, LogFormat},
    clock::now,
    document_store::ClusterDocumentStore,
    fleet::ClusterFleet,
    orphans,
    pod_client::PodClient,
    rewrite_conditions,
};
use anyhow::{Context as _, bail};
use rollora_cluster::{CachedClient, Cluster, ConnectOptions, LeaderElector, LeaseSettings, Scope, event_recorder};
use rollora_operator::Operator;
use std::{
    io::{self, IsTerminal, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Program name in the user agent and in error messages.
const USER_AGENT: &str = "rollora-operator";
/// Time for running reconciles to finish after a shutdown signal.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(15);
/// Interval at which cached responses of pods are evicted.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    init_logging(args.log_format);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run_operator(args))
}

async fn run_operator(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tasks.spawn(handle_signals(signals, stop.clone()));

    let cluster = Cluster::connect(&ConnectOptions::default(), USER_AGENT).await?;
    let scope = args.namespace.map_or(Scope::All, Scope::Namespace);
    let identity = args.identity.unwrap_or_else(random_identity);
    let address = SocketAddr::new(args.address, args.metrics_port);
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| {
        format!(
            "--address and --metrics-port: cannot listen on {address}; choose others, or stop the process that uses it"
        )
    })?;
    tracing::info!(server = cluster.server(), ?scope, identity, %address, "rollora-operator starts");

    let client = CachedClient::new(&cluster, scope);
    let is_leader = Arc::new(AtomicBool::new(false));
    let (events, event_publisher) = event_recorder(&client, &identity, now);
    let store = ClusterDocumentStore { client: client.clone(), events, preferred_group: args.api_group };
    let fleet = ClusterFleet::new(client.clone());
    tasks.spawn(evict_responses(Arc::clone(fleet.pod_client()), stop.clone()));
    let operator = Operator::new(store, fleet, now);
    let stats = Arc::clone(operator.stats());
    let settings = LeaseSettings {
        namespace: args.lease_namespace.unwrap_or_else(|| cluster.default_namespace().to_owned()),
        name: args.lease_name,
        identity,
        duration: args.lease_duration,
    };
    let mut elector = LeaderElector::new(&cluster, settings, now);
    let background_client = client.clone();
    let admin_state = AdminState { client, is_leader: Arc::clone(&is_leader), lease_problem: elector.problem(), stats };
    tasks.spawn(serve_admin(listener, admin_state, stop.clone()));

    tokio::select! {
        () = elector.acquire() => {}
        () = stop.cancelled() => return Ok(()),
        Some(ended) = tasks.join_next() => return ended?,
    }
    is_leader.store(true, Ordering::Relaxed);
    tasks.spawn({
        let stop = stop.clone();
        async move {
            tokio::join!(
                rewrite_conditions::run(background_client.clone(), stop.clone()),
                orphans::clear(background_client, stop)
            );
            Ok(())
        }
    });

    let mut publishing = JoinSet::new();
    publishing.spawn(event_publisher.run());
    let mut running = Box::pin(operator.run(stop.clone()));
    let cause = tokio::select! {
        result = running.as_mut() => ExitCause::Operator(result),
        lost = elector.renew() => ExitCause::LeaseLost(lost),
        () = shutdown_deadline(&stop) => ExitCause::ShutdownTimeout,
        Some(result) = next_early_exit(&mut tasks, &stop) => ExitCause::Task(result),
    };
    is_leader.store(false, Ordering::Relaxed);
    match cause {
        ExitCause::Operator(result) => {
            elector.release().await;
            result?;
        }
        // Running reconciles are aborted here: another replica may be working already.
        ExitCause::LeaseLost(lost) => bail!(lost),
        ExitCause::ShutdownTimeout => bail!("running reconciles did not finish within {SHUTDOWN_GRACE:?}"),
        ExitCause::Task(result) => result??,
    }
    stop.cancel();
    // The publisher sends the remaining events and ends once all recorders are dropped.
    drop(running);
    drop(operator);
    let remaining = async { while publishing.join_next().await.is_some() || tasks.join_next().await.is_some() {} };
    drop(timeout(Duration::from_secs(2), remaining).await);
    Ok(())
}

/// Why the operator stopped working.
enum ExitCause {
    Operator(Result<(), rollora_operator::OperatorError>),
    LeaseLost(rollora_cluster::LostLease),
    ShutdownTimeout,
    Task(TaskResult),
}

type TaskResult = Result<anyhow::Result<()>, tokio::task::JoinError>;

/// Waits until a task ends early, that is with an error or before `stop` fired. Tasks that end as requested must not
/// end the program before the Lease is released.
async fn next_early_exit(tasks: &mut JoinSet<anyhow::Result<()>>, stop: &CancellationToken) -> Option<TaskResult> {
    loop {
        let ended = tasks.join_next().await;
        let was_requested = stop.is_cancelled() && matches!(ended, Some(Ok(Ok(()))));
        if !was_requested {
            return ended;
        }
    }
}

async fn serve_admin(listener: TcpListener, admin_state: AdminState, stop: CancellationToken) -> anyhow::Result<()> {
    admin::serve(listener, admin_state, stop.cancelled_owned()).await.context("cannot serve /metrics and /readyz")
}

/// Regularly evicts cached responses of pods that are not requested anymore.
async fn evict_responses(pod_client: Arc<PodClient>, stop: CancellationToken) -> anyhow::Result<()> {
    while timeout(EVICTION_INTERVAL, stop.cancelled()).await.is_err() {
        pod_client.evict_expired();
    }
    Ok(())
}

/// Completes when the grace period after a shutdown signal is over.
async fn shutdown_deadline(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
}

/// Starts a graceful shutdown at the first signal, and fails at the second one.
async fn handle_signals(
    (mut terminate, mut interrupt): (Signal, Signal),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    wait_for_signal(&mut terminate, &mut interrupt).await;
    tracing::info!("shutting down after the running reconciles; send the signal again to end immediately");
    stop.cancel();
    wait_for_signal(&mut terminate, &mut interrupt).await;
    bail!("ended immediately by a second signal")
}

async fn wait_for_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Returns an identity that no other replica has.
fn random_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), rand::random::<u32>())
}

/// Logs to standard error; `RUST_LOG` sets the level.
fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,tower_http=off,kube=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(io::stderr().is_terminal() && !plain).init();
        }
        LogFormat::Json => builder.json().init(),
    }
}

/// Prints the reason for the failure to standard error.
pub(crate) fn print_error(message: &str) {
    // A failure to print cannot be reported anywhere.
    writeln!(io::stderr(), "rollora-operator: {message}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_ends_as_requested_does_not_end_the_program() {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for _ in 0..2 {
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.cancelled().await;
                Ok(())
            });
        }
        // Tasks end only after the wait has begun, so that `stop` is checked when they end.
        let mut waiting = std::pin::pin!(next_early_exit(&mut tasks, &stop));
        assert!(timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        stop.cancel();
        assert!(waiting.await.is_none(), "no task ended early");

        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(async { bail!("the port is gone") });
        assert!(next_early_exit(&mut tasks, &stop).await.unwrap().unwrap().is_err());
    }
}
