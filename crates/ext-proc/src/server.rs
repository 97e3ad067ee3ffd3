//! The complete server: three listeners over one set of active rules.

use crate::{
    admin::{self, AdminState},
    certificate::{CertificateError, CertificateFiles, CertificateReloader},
    clock, connections,
    processor::{BufferBudget, ObservedMetrics, ProcessorShared, RewriteOptions},
    readiness::ServerReadiness,
    service::GrpcService,
};
use prometheus_client::{
    metrics::{gauge::Gauge, info::Info},
    registry::Registry,
};
use rollora_router::{active_rules::ActiveRules, guard::PathGuard};
use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Time for responses of the metrics port to end after all streams have ended.
const METRICS_GRACE: Duration = Duration::from_millis(500);

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Which request paths are closed to clients.
    pub guard: PathGuard,
    /// How the selected target is passed on: in the body or in headers.
    pub rewrite: RewriteOptions,
    /// Maximum number of bytes buffered of one request whose headers depend on its model.
    pub buffer_limit: usize,
    /// Maximum number of bytes buffered of all requests together, including whole bodies in `BUFFERED` mode.
    pub buffer_budget: usize,
    /// Maximum time between two chunks while a part of the request is buffered.
    pub buffer_timeout: Duration,
    /// Maximum length of a body in `BUFFERED` mode, in bytes.
    pub max_body: usize,
    /// Time after `stop` in which new streams are still accepted.
    pub drain_delay: Duration,
    /// Time after the drain delay in which open streams may end.
    pub drain_timeout: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            guard: PathGuard::default(),
            rewrite: RewriteOptions::default(),
            buffer_limit: 16 * 1024 * 1024,
            buffer_budget: 256 * 1024 * 1024,
            buffer_timeout: Duration::from_mins(1),
            max_body: 64 * 1024 * 1024,
            drain_delay: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Listeners of the server.
#[derive(Debug)]
pub struct Listeners {
    /// The external processor and the gRPC health service, with TLS if enabled.
    pub grpc: TcpListener,
    /// The gRPC health service again, without TLS, for probes.
    pub health: TcpListener,
    /// HTTP endpoints `/rules`, `/metrics`, `/readyz` and `/livez`.
    pub metrics: TcpListener,
}

/// The ext_proc server. The owner of the [`ActiveRules`] updates them and reports through [`Self::readiness`] when they
/// are loaded for the first time.
#[derive(Debug)]
pub struct ExtProcServer {
    active_rules: Arc<ActiveRules>,
    settings: ServerSettings,
    readiness: ServerReadiness,
    registry: Registry,
    streams: Gauge,
    certificate: Option<CertificateReloader>,
}

impl ExtProcServer {
    /// Creates a server that does not listen yet.
    pub fn new(active_rules: Arc<ActiveRules>, settings: ServerSettings) -> Self {
        let mut registry = Registry::default();
        active_rules.register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("rollora_ext_proc_build", "Version of rollora-ext-proc", build);
        let streams = Gauge::default();
        registry.register("rollora_ext_proc_streams", "Open ext_proc streams, one per request", streams.clone());
        Self { active_rules, settings, readiness: ServerReadiness::new(), registry, streams, certificate: None }
    }

    /// Enables TLS on the gRPC listener with the certificate in `files`, which is reloaded when they change. The health
    /// listener stays without TLS. Fails if the certificate cannot be loaded.
    pub fn enable_tls(&mut self, files: CertificateFiles) -> Result<(), CertificateError> {
        self.certificate = Some(CertificateReloader::load(files, &mut self.registry)?);
        Ok(())
    }

    /// Returns the readiness, which the owner of the rules updates.
    pub fn readiness(&self) -> &ServerReadiness {
        &self.readiness
    }

    pub(crate) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Serves until `stop`, then reports not ready, accepts new streams for the drain delay, and lets open streams end.
    /// Fails if the metrics port cannot be served.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) -> io::Result<()> {
        let Self { active_rules, settings, readiness, mut registry, streams, certificate } = self;
        let acceptor = certificate.as_ref().map(CertificateReloader::acceptor).transpose().map_err(io::Error::other)?;
        let ServerSettings {
            guard,
            rewrite,
            buffer_limit,
            buffer_budget,
            buffer_timeout,
            max_body,
            drain_delay,
            drain_timeout,
        } = settings;
        let shared = Arc::new(ProcessorShared {
            active_rules: Arc::clone(&active_rules),
            guard,
            rewrite,
            buffer: BufferBudget::new(buffer_limit, buffer_budget, buffer_timeout),
            observed: ObservedMetrics::new(&mut registry),
            max_body,
            mode_warned: false.into(),
            streams,
            clock: clock::now,
        });
        let service = GrpcService::new(shared, readiness.clone());
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let drain = async {
            stop.cancelled().await;
            readiness.set_draining();
            tracing::info!("shutting down: reporting not ready, accepting new requests for {drain_delay:?}");
            tokio::time::sleep(drain_delay).await;
            closing.cancel();
        };
        let streams = async {
            let threads = connections::worker_threads();
            let streams = connections::serve(
                listeners.grpc,
                threads,
                service.clone().with_tls(acceptor),
                closing.clone(),
                drain_timeout,
            );
            let aborted = streams.await;
            if aborted > 0 {
                tracing::warn!("aborted {aborted} connections whose streams did not end within {drain_timeout:?}");
            }
            closed.cancel();
        };
        let probes =
            connections::serve(listeners.health, NonZeroUsize::MIN, service.clone(), closed.clone(), Duration::ZERO);
        let state = AdminState { active_rules, readiness: readiness.clone(), registry: Arc::new(registry) };
        let admin = async {
            let served = tokio::select! {
                served = admin::serve(listeners.metrics, state, closed.clone()) => served,
                // Do not wait for idle keep-alive connections.
                () = async { closed.cancelled().await; tokio::time::sleep(METRICS_GRACE).await } => Ok(()),
            };
            // Without the metrics port the operator cannot read the active rules, so the server must stop.
            stop.cancel();
            served
        };
        let reload = async {
            match certificate {
                Some(certificate) => certificate.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ((), (), _, served) = async { tokio::join!(drain, streams, probes, admin) } => served,
            never = reload => match never {},
        }
    }
}

#[cfg(test)]
mod tests;
