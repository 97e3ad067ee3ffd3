//! The program: rules from a cluster, listeners by flags, signals.

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

/// What the program was told.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    /// The pool whose rewrites count.
    pub pool: String,
    /// The namespace of the pool and its rewrites.
    pub namespace: String,
    /// Where to listen.
    pub address: IpAddr,
    /// The port of the external processor.
    pub grpc_port: u16,
    /// The port of the health service.
    pub health_port: u16,
    /// The port of `/rules`, `/metrics`, `/readyz` and `/livez`.
    pub metrics_port: u16,
    /// The certificate with which it speaks TLS; none where it does not.
    pub tls: Option<CertificateFiles>,
    /// How it serves.
    pub settings: ServerSettings,
}

/// Serves until a signal asks it to end, and has let everything end that had begun.
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
    let in_force = Arc::new(ActiveRules::new(pool, &[]));
    let mut server = ExtProcServer::new(Arc::clone(&in_force), options.settings);
    if let Some(files) = options.tls {
        server.enable_tls(files)?;
    }
    let readiness = server.readiness().clone();
    let feed = RuleSource::new(in_force, readiness, server.registry());
    let rewrites = RewriteWatch::new(&cluster, Scope::Namespace(options.namespace));
    tokio::select! {
        ended = server.serve(listeners, stop) => ended.context("the metrics port cannot be served"),
        asked = signals => match asked? {},
        never = feed.run(rewrites) => match never {},
    }
}

async fn bind(address: IpAddr, port: u16) -> Result<TcpListener> {
    TcpListener::bind((address, port)).await.with_context(|| format!("cannot listen on {address}:{port}"))
}

/// From now on signals ask to end, which is waited for. The first asks for a drain; a second one means that nobody wants to wait.
fn stop_on_signals(stop: CancellationToken) -> io::Result<impl Future<Output = Result<Infallible>>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                bail!("asked to end a second time, while streams were still ending");
            }
            stop.cancel();
        }
    })
}
