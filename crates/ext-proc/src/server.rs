//! The server, whole: three listeners over one set of rules.

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

/// How long answers of the metrics port may take to end when everything else has.
const METRICS_GRACE: Duration = Duration::from_millis(500);

/// What can be set.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Which paths are closed to clients.
    pub guard: PathGuard,
    /// How a rule is applied and told.
    pub rewrite: RewriteOptions,
    /// The most that is held of one request whose headers have to tell its model.
    pub buffer_limit: usize,
    /// The most that is held of all of them together, and of bodies that come as a whole.
    pub buffer_budget: usize,
    /// How long a part of a request is held until more of it comes.
    pub buffer_timeout: Duration,
    /// The longest body that is taken as a whole, which is what the mode `BUFFERED` asks for.
    pub max_body: usize,
    /// How long new streams are still served after the end was announced.
    pub drain_delay: Duration,
    /// How long streams that have begun may take to end after that.
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

/// Where it listens.
#[derive(Debug)]
pub struct Listeners {
    /// The external processor, and the health service, as gRPC.
    pub grpc: TcpListener,
    /// The health service again, for probes, without TLS.
    pub health: TcpListener,
    /// `/rules`, `/metrics`, `/readyz`, `/livez`.
    pub metrics: TcpListener,
}

/// The server. Its rules are those of an [`InForce`] that somebody else changes, who says through [`Self::readiness`]
/// when they are there for the first time.
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
    /// A server that has not begun.
    pub fn new(active_rules: Arc<ActiveRules>, settings: ServerSettings) -> Self {
        let mut registry = Registry::default();
        active_rules.register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("rollora_ext_proc_build", "Which program this is", build);
        let streams = Gauge::default();
        registry.register("rollora_ext_proc_streams", "Streams of Envoys, one for each request", streams.clone());
        Self { active_rules, settings, readiness: ServerReadiness::new(), registry, streams, certificate: None }
    }

    /// From now on it speaks TLS with Envoys, with the certificate in these files, whenever they are renewed. Probes go
    /// on without.
    pub fn enable_tls(&mut self, files: CertificateFiles) -> Result<(), CertificateError> {
        self.certificate = Some(CertificateReloader::load(files, &mut self.registry)?);
        Ok(())
    }

    /// Whether requests should come.
    pub fn readiness(&self) -> &ServerReadiness {
        &self.readiness
    }

    pub(crate) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Serves until `stop`; then says so to whoever asks for its health, goes on for a moment, and lets what has begun
    /// end.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) -> io::Result<()> {
        let Self { active_rules: in_force, settings, readiness, mut registry, streams, certificate } = self;
        let acceptor = certificate.as_ref().map(CertificateReloader::acceptor).transpose().map_err(io::Error::other)?;
        let ServerSettings {
            guard,
            rewrite: how,
            buffer_limit: max_hold,
            buffer_budget: hold_budget,
            buffer_timeout: hold_timeout,
            max_body,
            drain_delay,
            drain_timeout,
        } = settings;
        let rules = Arc::new(ProcessorShared {
            active_rules: Arc::clone(&in_force),
            guard,
            rewrite: how,
            buffer: BufferBudget::new(max_hold, hold_budget, hold_timeout),
            observed: ObservedMetrics::new(&mut registry),
            max_body,
            mode_warned: false.into(),
            streams,
            clock: clock::now,
        });
        let methods = GrpcService::new(rules, readiness.clone());
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let drain = async {
            stop.cancelled().await;
            readiness.set_draining();
            tracing::info!("ending: health says so, new requests are served for {drain_delay:?} more");
            tokio::time::sleep(drain_delay).await;
            closing.cancel();
        };
        let streams = async {
            let threads = connections::worker_threads();
            let streams = connections::serve(
                listeners.grpc,
                threads,
                methods.clone().with_tls(acceptor),
                closing.clone(),
                drain_timeout,
            );
            let cut = streams.await;
            if cut > 0 {
                tracing::warn!("{cut} connections had streams that did not end within {drain_timeout:?}");
            }
            closed.cancel();
        };
        let probes =
            connections::serve(listeners.health, NonZeroUsize::MIN, methods.clone(), closed.clone(), Duration::ZERO);
        let telemetry =
            AdminState { active_rules: in_force, readiness: readiness.clone(), registry: Arc::new(registry) };
        let telemetry = async {
            let served = tokio::select! {
                served = admin::serve(listeners.metrics, telemetry, closed.clone()) => served,
                // Whoever keeps a connection open without asking anything is not waited for.
                () = async { closed.cancelled().await; tokio::time::sleep(METRICS_GRACE).await } => Ok(()),
            };
            // Without it nobody sees what is in force here.
            stop.cancel();
            served
        };
        let follow = async {
            match certificate {
                Some(certificate) => certificate.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ((), (), _, served) = async { tokio::join!(drain, streams, probes, telemetry) } => served,
            never = follow => match never {},
        }
    }
}

#[cfg(test)]
mod tests;
