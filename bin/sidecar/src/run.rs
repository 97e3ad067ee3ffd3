//! Logging, signals, the tasks of the program, and its shutdown.

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

/// Time for all other tasks to end after the calls to vLLM have finished or were abandoned.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    init_logging(settings.log_format);
    // One thread: the load is small, and every further thread would cost memory in every pod.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    let result = runtime.block_on(run_until_stopped(settings));
    // Do not wait for a file operation that hangs on a dead volume.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(settings: Settings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("--address and --metrics-port: cannot listen on {}: give another port", settings.listen)
    })?;
    for note in &settings.ignored_flags {
        tracing::info!("{note}");
    }
    let Settings { config_location, vllm_host, .. } = &settings;
    let listen = listener.local_addr().unwrap_or(settings.listen);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pod = settings.pod_name,
        %listen,
        file = %config_location.file.display(),
        configmap = config_location.configmap.as_ref().map(|name| format!("{}/{}", name.namespace, name.name)),
        "rollora-sidecar starts"
    );
    let state_file = StateFile::open(settings.state_dir.as_deref())?;
    let config_source = Arc::new(ConfigSource::open(config_location, vllm_host.clone()).await?);
    let metrics = Arc::new(SidecarMetrics::new());
    let supervisor = Supervisor::new(&settings, Arc::clone(&config_source), &state_file, Arc::clone(&metrics));
    let config_since = watch::Sender::new(None);
    let report = SidecarReport::new(supervisor.running(), metrics, config_since.subscribe());

    // The sidecar with its calls in flight ends first; the tasks that it depends on run until then.
    let (stop, end_others) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = std::pin::pin!(async {
        let supervise = async {
            supervisor.run(stop.clone()).await;
            end_others.cancel();
        };
        let serve = async {
            tokio::select! {
                result = admin::serve(listener, report, end_others.clone()) => result,
                () = async { end_others.cancelled().await; sleep(SHUTDOWN_GRACE).await } => Ok(()),
            }
        };
        let ((), (), (), (), (), result) = tokio::join!(
            supervise,
            config_source.run(end_others.clone()),
            settings.api_key.run(end_others.clone()),
            settings.tls.authorities().run(end_others.clone()),
            state_file.run(end_others.clone()),
            serve,
        );
        result
    });
    let result = tokio::select! {
        result = tasks.as_mut() => result.context("a task ended unexpectedly"),
        () = supervisor.log_outages() => Ok(()),
        () = run_gc(settings.adapter_cache.as_deref(), &supervisor) => Ok(()),
        () = admin::track_config_since(config_source.desired(), config_since) => Ok(()),
        () = stop_signal(&mut terminate, &mut interrupt) => {
            tracing::info!("shutting down: no new calls are started, and vLLM keeps its adapters");
            stop.cancel();
            let limit = settings.stop_timeout + 2 * SHUTDOWN_GRACE;
            tokio::select! {
                result = timeout(limit, tasks) => result.unwrap_or(Ok(())).map_err(Into::into),
                () = stop_signal(&mut terminate, &mut interrupt) => {
                    tracing::warn!("second signal: exiting immediately, calls in flight are abandoned");
                    Ok(())
                }
            }
        }
    };
    state_file.write_final();
    result
}

/// Runs the cleanup of the folder of fetched adapters, if there is one.
async fn run_gc(cache: Option<&AdapterCache>, supervisor: &Supervisor) {
    match cache {
        Some(cache) => cache.run_gc(supervisor.running()).await,
        None => std::future::pending().await,
    }
}

async fn stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// The filter without `RUST_LOG`. kube's client logs an error at every attempt during an outage; the sidecar itself
/// logs an outage once.
const DEFAULT_LOG_FILTER: &str = "info,kube_client=off";

/// Logs to standard error; `RUST_LOG` sets the level.
fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG_FILTER));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = io::stderr().is_terminal() && !no_color;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(color).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
}

/// Prints an error of the program to standard error.
pub(crate) fn print_error(text: &str) {
    // If standard error is closed, the error cannot be reported.
    writeln!(io::stderr(), "rollora-sidecar: {text}").ok();
}
