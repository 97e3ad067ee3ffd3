//! From start to end: connect, wait for the Lease, work, let go of it.

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

/// How this program calls itself.
const USER_AGENT: &str = "rollora-operator";
/// How long what is under way may take yet when the program is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(15);
/// How often what nobody asks for any more is forgotten.
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
        format!("--address and --metrics-port {address}: cannot listen there; give others, or end who listens there")
    })?;
    tracing::info!(server = cluster.server(), ?scope, identity, %address, "started");

    let documents = CachedClient::new(&cluster, scope);
    let leads = Arc::new(AtomicBool::new(false));
    let (events, teller) = event_recorder(&documents, &identity, now);
    let store = ClusterDocumentStore { client: documents.clone(), events, preferred_group: args.api_group };
    let fleet = ClusterFleet::new(documents.clone());
    tasks.spawn(evict_responses(Arc::clone(fleet.pod_client()), stop.clone()));
    let operator = Operator::new(store, fleet, now);
    let tally = Arc::clone(operator.stats());
    let settings = LeaseSettings {
        namespace: args.lease_namespace.unwrap_or_else(|| cluster.default_namespace().to_owned()),
        name: args.lease_name,
        identity,
        duration: args.lease_duration,
    };
    let mut election = LeaderElector::new(&cluster, settings, now);
    let told = documents.clone();
    let telling = AdminState {
        client: documents,
        is_leader: Arc::clone(&leads),
        lease_problem: election.problem(),
        stats: tally,
    };
    tasks.spawn(serve_admin(listener, telling, stop.clone()));

    tokio::select! {
        () = election.acquire() => {}
        () = stop.cancelled() => return Ok(()),
        Some(ended) = tasks.join_next() => return ended?,
    }
    leads.store(true, Ordering::Relaxed);
    tasks.spawn({
        let stop = stop.clone();
        async move {
            tokio::join!(rewrite_conditions::run(told.clone(), stop.clone()), orphans::clear(told, stop));
            Ok(())
        }
    });

    let mut voice = JoinSet::new();
    voice.spawn(teller.run());
    let mut working = Box::pin(operator.run(stop.clone()));
    let ended = tokio::select! {
        ended = working.as_mut() => ExitCause::Operator(ended),
        lost = election.renew() => ExitCause::LeaseLost(lost),
        () = shutdown_deadline(&stop) => ExitCause::ShutdownTimeout,
        Some(ended) = next_early_exit(&mut tasks, &stop) => ExitCause::Task(ended),
    };
    leads.store(false, Ordering::Relaxed);
    match ended {
        ExitCause::Operator(ended) => {
            election.release().await;
            ended?;
        }
        // What is under way stops here and now: somebody else may work already.
        ExitCause::LeaseLost(lost) => bail!(lost),
        ExitCause::ShutdownTimeout => bail!("what was under way did not end within {SHUTDOWN_GRACE:?}"),
        ExitCause::Task(ended) => ended??,
    }
    stop.cancel();
    // What is to be told yet is told when nobody can want anything told any more.
    drop(working);
    drop(operator);
    let ends = async { while voice.join_next().await.is_some() || tasks.join_next().await.is_some() {} };
    drop(timeout(Duration::from_secs(2), ends).await);
    Ok(())
}

/// Why the work ended.
enum ExitCause {
    Operator(Result<(), rollora_operator::OperatorError>),
    LeaseLost(rollora_cluster::LostLease),
    ShutdownTimeout,
    Task(TaskResult),
}

type TaskResult = Result<anyhow::Result<()>, tokio::task::JoinError>;

/// Waits until a task ends that nobody has asked to end. Those that were asked are no reason to keep the Lease from
/// whoever waits for it.
async fn next_early_exit(tasks: &mut JoinSet<anyhow::Result<()>>, stop: &CancellationToken) -> Option<TaskResult> {
    loop {
        let ended = tasks.join_next().await;
        let was_asked = stop.is_cancelled() && matches!(ended, Some(Ok(Ok(()))));
        if !was_asked {
            return ended;
        }
    }
}

async fn serve_admin(listener: TcpListener, telling: AdminState, stop: CancellationToken) -> anyhow::Result<()> {
    admin::serve(listener, telling, stop.cancelled_owned()).await.context("/metrics and /readyz cannot be served")
}

/// Forgets what nobody asks pods any more, now and then.
async fn evict_responses(questions: Arc<PodClient>, stop: CancellationToken) -> anyhow::Result<()> {
    while timeout(EVICTION_INTERVAL, stop.cancelled()).await.is_err() {
        questions.evict_expired();
    }
    Ok(())
}

/// Waits until the program was told to end and has had its time for that.
async fn shutdown_deadline(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
}

/// Ends at the first signal; at the second at once.
async fn handle_signals(
    (mut terminate, mut interrupt): (Signal, Signal),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    wait_for_signal(&mut terminate, &mut interrupt).await;
    tracing::info!("ending when what is under way has ended; the same signal again ends at once");
    stop.cancel();
    wait_for_signal(&mut terminate, &mut interrupt).await;
    bail!("ended at once, as it was told")
}

async fn wait_for_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// A name that no other replica has.
fn random_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), rand::random::<u32>())
}

/// Logs to standard error; `RUST_LOG` says how much.
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

/// Says on standard error why the program ends.
pub(crate) fn print_error(words: &str) {
    // Nobody is left to tell if this fails.
    writeln!(io::stderr(), "rollora-operator: {words}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_ends_as_it_was_asked_to_does_not_end_the_work_before_the_lease_is_released() {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for _ in 0..2 {
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.cancelled().await;
                Ok(())
            });
        }
        // The guard was looked at when the waiting began; the end comes later.
        let mut waiting = std::pin::pin!(next_early_exit(&mut tasks, &stop));
        assert!(timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        stop.cancel();
        assert!(waiting.await.is_none(), "all have ended, and none of them early");

        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(async { bail!("the port is gone") });
        assert!(next_early_exit(&mut tasks, &stop).await.unwrap().unwrap().is_err());
    }
}
