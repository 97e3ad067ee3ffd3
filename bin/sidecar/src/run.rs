//! The log, the signals, the parts, and how it all ends.

use crate::{
    adapter_cache::AdapterCache,
    admin::{self, SidecarReport},
    args::LogFormat,
    config_source::ConfigSource,
    metrics::SidecarMetrics,
    settings::Settings,
    state_file::StateFile,
    supervisor::Supervisor,
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
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Runs until it is told to end.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    init_logging(settings.log_format);
    // One thread: there is little to do, and every further one would cost memory in every pod.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(run_until_stopped(settings));
    // A file that hangs on a dead volume is not waited for.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(settings: Settings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("--address and --metrics-port: {} cannot be listened on: give another port", settings.listen)
    })?;
    for note in &settings.ignored_flags {
        tracing::info!("{note}");
    }
    let Settings { config_location: source, vllm_host, .. } = &settings;
    let listen = listener.local_addr().unwrap_or(settings.listen);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pod = settings.pod_name,
        %listen,
        file = %source.file.display(),
        configmap = source.configmap.as_ref().map(|name| format!("{}/{}", name.namespace, name.name)),
        "rollora-sidecar starts"
    );
    let keep = StateFile::open(settings.state_dir.as_deref())?;
    let feed = Arc::new(ConfigSource::open(source, vllm_host.clone()).await?);
    let metrics = Arc::new(SidecarMetrics::new());
    let supervisor = Supervisor::new(&settings, Arc::clone(&feed), &keep, Arc::clone(&metrics));
    let config_since = watch::Sender::new(None);
    let told = SidecarReport::new(supervisor.running(), metrics, config_since.subscribe());

    // First the sidecar ends, with its calls under way; the others go on for it until then.
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let mut parts = std::pin::pin!(async {
        let supervised = async {
            supervisor.run(stop.clone()).await;
            end.cancel();
        };
        let served = async {
            tokio::select! {
                served = admin::serve(listener, told, end.clone()) => served,
                () = async { end.cancelled().await; sleep(SHUTDOWN_GRACE).await } => Ok(()),
            }
        };
        let ((), (), (), (), (), served) = tokio::join!(
            supervised,
            feed.run(end.clone()),
            settings.api_key.run(end.clone()),
            settings.tls.authorities().run(end.clone()),
            keep.run(end.clone()),
            served,
        );
        served
    });
    let ended = tokio::select! {
        ended = parts.as_mut() => ended.context("the parts ended by themselves"),
        () = supervisor.log_outages() => Ok(()),
        () = run_gc(settings.adapter_cache.as_deref(), &supervisor) => Ok(()),
        () = admin::track_config_since(feed.desired(), config_since) => Ok(()),
        () = stop_signal(&mut terminate, &mut interrupt) => {
            tracing::info!("told to end: vLLM is left as it is, and nothing new is begun");
            stop.cancel();
            tokio::select! {
                ended = timeout(settings.stop_timeout + 2 * SHUTDOWN_GRACE, parts) => ended.unwrap_or(Ok(())).map_err(Into::into),
                () = stop_signal(&mut terminate, &mut interrupt) => {
                    tracing::warn!("told to end again: what is under way is left as it is");
                    Ok(())
                }
            }
        }
    };
    keep.write_final();
    ended
}

/// Cleans up in the folder of fetched adapters, where there is one.
async fn run_gc(shelf: Option<&AdapterCache>, supervisor: &Supervisor) {
    match shelf {
        Some(shelf) => shelf.run_gc(supervisor.running()).await,
        None => std::future::pending().await,
    }
}

async fn stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What is logged where `RUST_LOG` says nothing. kube's client calls an outage an error at every try; here it is said
/// once, in words.
const DEFAULT_LOG_FILTER: &str = "info,kube_client=off";

/// Logs to standard error; `RUST_LOG` says how much.
fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG_FILTER));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !plain;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(color).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
}

/// Says why it does not run.
pub(crate) fn print_error(text: &str) {
    // Where standard error is closed there is nobody to tell.
    writeln!(io::stderr(), "rollora-sidecar: {text}").ok();
}
