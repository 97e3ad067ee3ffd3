//! The log, the signals, the parts, and how it all ends.

use crate::{
    args::LogFormat,
    feed::Feed,
    keep::Keep,
    metrics::Metrics,
    serve::{self, Told},
    settings::Settings,
    shelf::Shelf,
    supervise::Supervisor,
};
use anyhow::Context;
use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// When calls to vLLM have ended, or were given up, everything else is waited for this long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs until it is told to end.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    log(settings.log_format);
    // One thread: there is little to do, and every further one would cost memory in every pod.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(work(settings));
    // A file that hangs on a dead volume is not waited for.
    runtime.shutdown_background();
    result
}

async fn work(settings: Settings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("--address and --metrics-port: {} cannot be listened on: give another port", settings.listen)
    })?;
    for note in &settings.notes {
        tracing::info!("{note}");
    }
    let Settings { source, vllm_host, .. } = &settings;
    let listen = listener.local_addr().unwrap_or(settings.listen);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pod = settings.name,
        %listen,
        file = %source.file.display(),
        configmap = source.configmap.as_ref().map(|name| format!("{}/{}", name.namespace, name.name)),
        "rollora-sidecar starts"
    );
    let keep = Keep::open(settings.state_dir.as_deref())?;
    let feed = Arc::new(Feed::open(source, vllm_host.clone()).await?);
    let metrics = Arc::new(Metrics::new());
    let supervisor = Supervisor::new(&settings, Arc::clone(&feed), &keep, Arc::clone(&metrics));
    let config_since = watch::Sender::new(None);
    let told = Told::new(supervisor.view(), metrics, config_since.subscribe());

    // First the sidecar ends, with its calls under way; the others go on for it until then.
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let mut parts = std::pin::pin!(async {
        let supervised = async {
            supervisor.run(stop.clone()).await;
            end.cancel();
        };
        let served = async {
            tokio::select! {
                served = serve::serve(listener, told, end.clone()) => served,
                () = async { end.cancelled().await; sleep(LAST_WORDS).await } => Ok(()),
            }
        };
        let ((), (), (), (), (), served) = tokio::join!(
            supervised,
            feed.run(end.clone()),
            settings.key.run(end.clone()),
            settings.trust.authorities().run(end.clone()),
            keep.run(end.clone()),
            served,
        );
        served
    });
    let ended = tokio::select! {
        ended = parts.as_mut() => ended.context("the parts ended by themselves"),
        () = supervisor.complain() => Ok(()),
        () = tend(settings.shelf.as_deref(), &supervisor) => Ok(()),
        () = serve::since(feed.desired(), config_since) => Ok(()),
        () = told_to_end(&mut terminate, &mut interrupt) => {
            tracing::info!("told to end: vLLM is left as it is, and nothing new is begun");
            stop.cancel();
            tokio::select! {
                ended = timeout(settings.stop_timeout + 2 * LAST_WORDS, parts) => ended.unwrap_or(Ok(())).map_err(Into::into),
                () = told_to_end(&mut terminate, &mut interrupt) => {
                    tracing::warn!("told to end again: what is under way is left as it is");
                    Ok(())
                }
            }
        }
    };
    keep.last();
    ended
}

/// Cleans up in the folder of fetched adapters, where there is one.
async fn tend(shelf: Option<&Shelf>, supervisor: &Supervisor) {
    match shelf {
        Some(shelf) => shelf.tend(supervisor.view()).await,
        None => std::future::pending().await,
    }
}

async fn told_to_end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What is logged where `RUST_LOG` says nothing. kube's client calls an outage an error at every try; here it is said
/// once, in words.
const LOGGED: &str = "info,kube_client=off";

/// Logs to standard error; `RUST_LOG` says how much.
fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !plain;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(color).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
}

/// Says why it does not run.
pub(crate) fn say_error(text: &str) {
    // Where standard error is closed there is nobody to tell.
    writeln!(io::stderr(), "rollora-sidecar: {text}").ok();
}
