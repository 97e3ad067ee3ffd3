//! From start to end: connect, wait for the Lease, work, let go of it.

use crate::{
    abandoned, acceptance,
    args::{Args, LogFormat},
    clock::now,
    fleet::ClusterFleet,
    questions::Questions,
    serve::{self, Telling},
    store::ClusterStore,
};
use anyhow::{Context as _, bail};
use rollora_cluster::{Access, Cluster, Documents, Election, LeaseSettings, Scope, events};
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
const AGENT: &str = "rollora-operator";
/// How long what is under way may take yet when the program is told to end.
const GRACE: Duration = Duration::from_secs(15);
/// How often what nobody asks for any more is forgotten.
const SWEEP: Duration = Duration::from_secs(1);

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    log(args.log_format);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work(args))
}

async fn work(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tasks.spawn(until_told(signals, stop.clone()));

    let cluster = Cluster::connect(&Access::default(), AGENT).await?;
    let scope = args.namespace.map_or(Scope::All, Scope::Namespace);
    let identity = args.identity.unwrap_or_else(made_up_name);
    let address = SocketAddr::new(args.address, args.metrics_port);
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| {
        format!("--address and --metrics-port {address}: cannot listen there; give others, or end who listens there")
    })?;
    tracing::info!(server = cluster.server(), ?scope, identity, %address, "started");

    let documents = Documents::new(&cluster, scope);
    let leads = Arc::new(AtomicBool::new(false));
    let (events, teller) = events(&documents, &identity, now);
    let store = ClusterStore { documents: documents.clone(), events, group: args.api_group };
    let fleet = ClusterFleet::new(documents.clone());
    tasks.spawn(sweep(Arc::clone(fleet.questions()), stop.clone()));
    let operator = Operator::new(store, fleet, now);
    let tally = Arc::clone(operator.tally());
    let settings = LeaseSettings {
        namespace: args.lease_namespace.unwrap_or_else(|| cluster.default_namespace().to_owned()),
        name: args.lease_name,
        identity,
        duration: args.lease_duration,
    };
    let mut election = Election::new(&cluster, settings, now);
    let told = documents.clone();
    let telling = Telling { documents, leads: Arc::clone(&leads), lease: election.problem(), tally };
    tasks.spawn(answer(listener, telling, stop.clone()));

    tokio::select! {
        () = election.win() => {}
        () = stop.cancelled() => return Ok(()),
        Some(ended) = tasks.join_next() => return ended?,
    }
    leads.store(true, Ordering::Relaxed);
    tasks.spawn({
        let stop = stop.clone();
        async move {
            tokio::join!(acceptance::tell(told.clone(), stop.clone()), abandoned::clear(told, stop));
            Ok(())
        }
    });

    let mut voice = JoinSet::new();
    voice.spawn(teller.run());
    let mut working = Box::pin(operator.run(stop.clone()));
    let ended = tokio::select! {
        ended = working.as_mut() => Ended::Operator(ended),
        lost = election.keep() => Ended::Lost(lost),
        () = too_late(&stop) => Ended::TooLate,
        Some(ended) = ended_early(&mut tasks, &stop) => Ended::Task(ended),
    };
    leads.store(false, Ordering::Relaxed);
    match ended {
        Ended::Operator(ended) => {
            election.release().await;
            ended?;
        }
        // What is under way stops here and now: somebody else may work already.
        Ended::Lost(lost) => bail!(lost),
        Ended::TooLate => bail!("what was under way did not end within {GRACE:?}"),
        Ended::Task(ended) => ended??,
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
enum Ended {
    Operator(Result<(), rollora_operator::OperatorError>),
    Lost(rollora_cluster::LostLease),
    TooLate,
    Task(TaskEnd),
}

type TaskEnd = Result<anyhow::Result<()>, tokio::task::JoinError>;

/// Waits until a task ends that nobody has asked to end. Those that were asked are no reason to keep the Lease from
/// whoever waits for it.
async fn ended_early(tasks: &mut JoinSet<anyhow::Result<()>>, stop: &CancellationToken) -> Option<TaskEnd> {
    loop {
        let ended = tasks.join_next().await;
        let was_asked = stop.is_cancelled() && matches!(ended, Some(Ok(Ok(()))));
        if !was_asked {
            return ended;
        }
    }
}

async fn answer(listener: TcpListener, telling: Telling, stop: CancellationToken) -> anyhow::Result<()> {
    serve::serve(listener, telling, stop.cancelled_owned()).await.context("/metrics and /readyz cannot be served")
}

/// Forgets what nobody asks pods any more, now and then.
async fn sweep(questions: Arc<Questions>, stop: CancellationToken) -> anyhow::Result<()> {
    while timeout(SWEEP, stop.cancelled()).await.is_err() {
        questions.sweep();
    }
    Ok(())
}

/// Waits until the program was told to end and has had its time for that.
async fn too_late(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

/// Ends at the first signal; at the second at once.
async fn until_told((mut terminate, mut interrupt): (Signal, Signal), stop: CancellationToken) -> anyhow::Result<()> {
    told(&mut terminate, &mut interrupt).await;
    tracing::info!("ending when what is under way has ended; the same signal again ends at once");
    stop.cancel();
    told(&mut terminate, &mut interrupt).await;
    bail!("ended at once, as it was told")
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// A name that no other replica has.
fn made_up_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), rand::random::<u32>())
}

/// Logs to standard error; `RUST_LOG` says how much.
fn log(format: LogFormat) {
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
pub(crate) fn say_error(words: &str) {
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
        let mut waiting = std::pin::pin!(ended_early(&mut tasks, &stop));
        assert!(timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        stop.cancel();
        assert!(waiting.await.is_none(), "all have ended, and none of them early");

        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(async { bail!("the port is gone") });
        assert!(ended_early(&mut tasks, &stop).await.unwrap().unwrap().is_err());
    }
}
