//! The program `rollora-ext-proc`: runs the server with the rewrites of a cluster until a signal.

use crate::{
    certificate::CertificateFiles,
    rule_source::RuleSource,
    server::{ExtProcServer, Listeners, ServerSettings},
};
use anyhow::{Context as _, Result, bail};
use rollora_api::rewrite::PoolRef;
use rollora_cluster::{Cluster, ConnectOptions, RewriteWatch, Scope};
use rollora_router::active_rules::ActiveRules;
use std::{convert::Infallible, io, net::IpAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Options of the program, parsed from its command line.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    /// Name of the InferencePool whose rewrites are applied.
    pub pool: String,
    /// Namespace of the pool and its rewrites.
    pub namespace: String,
    /// Address that all listeners bind to.
    pub address: IpAddr,
    /// Port of the external processor.
    pub grpc_port: u16,
    /// Second port of the gRPC health service, for probes.
    pub health_port: u16,
    /// Port of `/rules`, `/metrics`, `/readyz` and `/livez`.
    pub metrics_port: u16,
    /// Certificate for TLS on the gRPC port. `None` serves it without TLS.
    pub tls: Option<CertificateFiles>,
    /// Settings of the server.
    pub settings: ServerSettings,
}

/// Serves until SIGTERM or SIGINT, then drains and returns. Fails if a port cannot be bound, the certificate cannot be
/// loaded, no cluster is configured, or a second signal arrives while draining.
pub async fn run(options: ProgramOptions) -> Result<()> {
    let stop = CancellationToken::new();
    let signals = stop_on_signals(stop.clone())?;
    let listeners = Listeners {
        grpc: bind(options.address, options.grpc_port).await?,
        health: bind(options.address, options.health_port).await?,
        metrics: bind(options.address, options.metrics_port).await?,
    };
    tracing::info!(
        pool = options.pool,
        namespace = options.namespace,
        address = %options.address,
        grpc = options.grpc_port,
        health = options.health_port,
        metrics = options.metrics_port,
        "listening"
    );
    let cluster = Cluster::connect(&ConnectOptions::default(), "rollora-ext-proc").await?;
    let pool = PoolRef { name: options.pool, ..PoolRef::default() };
    let active_rules = Arc::new(ActiveRules::new(pool, &[]));
    let mut server = ExtProcServer::new(Arc::clone(&active_rules), options.settings);
    if let Some(files) = options.tls {
        server.enable_tls(files)?;
    }
    let readiness = server.readiness().clone();
    let rule_source = RuleSource::new(active_rules, readiness, server.registry());
    let rewrites = RewriteWatch::new(&cluster, Scope::Namespace(options.namespace));
    tokio::select! {
        ended = server.serve(listeners, stop) => ended.context("cannot serve the metrics port"),
        never = signals => match never? {},
        never = rule_source.run(rewrites) => match never {},
    }
}

async fn bind(address: IpAddr, port: u16) -> Result<TcpListener> {
    TcpListener::bind((address, port))
        .await
        .with_context(|| format!("cannot listen on {address}:{port}: give another --address or port"))
}

/// Installs handlers for SIGTERM and SIGINT. The first signal cancels `stop`, which starts the drain; the returned
/// future fails at the second one.
fn stop_on_signals(stop: CancellationToken) -> io::Result<impl Future<Output = Result<Infallible>>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                bail!("received a second signal before all streams had ended");
            }
            stop.cancel();
        }
    })
}
