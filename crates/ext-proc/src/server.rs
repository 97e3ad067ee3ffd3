//! The server, whole: three listeners over one set of rules.

use crate::{
    certificate::{Certificate, CertificateError, Files},
    clock, connections,
    processor::{Figures, Hold, How, Rules},
    readiness::Readiness,
    service::Methods,
    telemetry::{self, Telemetry},
};
use prometheus_client::{
    metrics::{gauge::Gauge, info::Info},
    registry::Registry,
};
use rollora_router::{guard::Guard, in_force::InForce};
use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long answers of the metrics port may take to end when everything else has.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which paths are closed to clients.
    pub guard: Guard,
    /// How a rule is applied and told.
    pub how: How,
    /// The most that is held of one request whose headers have to tell its model.
    pub max_hold: usize,
    /// The most that is held of all of them together, and of bodies that come as a whole.
    pub hold_budget: usize,
    /// How long a part of a request is held until more of it comes.
    pub hold_timeout: Duration,
    /// The longest body that is taken as a whole, which is what the mode `BUFFERED` asks for.
    pub max_body: usize,
    /// How long new streams are still served after the end was announced.
    pub drain_delay: Duration,
    /// How long streams that have begun may take to end after that.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guard: Guard::default(),
            how: How::default(),
            max_hold: 16 * 1024 * 1024,
            hold_budget: 256 * 1024 * 1024,
            hold_timeout: Duration::from_mins(1),
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
pub struct Server {
    in_force: Arc<InForce>,
    settings: Settings,
    readiness: Readiness,
    registry: Registry,
    streams: Gauge,
    certificate: Option<Certificate>,
}

impl Server {
    /// A server that has not begun.
    pub fn new(in_force: Arc<InForce>, settings: Settings) -> Self {
        let mut registry = Registry::default();
        in_force.register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("rollora_ext_proc_build", "Which program this is", build);
        let streams = Gauge::default();
        registry.register("rollora_ext_proc_streams", "Streams of Envoys, one for each request", streams.clone());
        Self { in_force, settings, readiness: Readiness::new(), registry, streams, certificate: None }
    }

    /// From now on it speaks TLS with Envoys, with the certificate in these files, whenever they are renewed. Probes go
    /// on without.
    pub fn speak_tls(&mut self, files: Files) -> Result<(), CertificateError> {
        self.certificate = Some(Certificate::load(files, &mut self.registry)?);
        Ok(())
    }

    /// Whether requests should come.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub(crate) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Serves until `stop`; then says so to whoever asks for its health, goes on for a moment, and lets what has begun
    /// end.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) -> io::Result<()> {
        let Self { in_force, settings, readiness, mut registry, streams, certificate } = self;
        let acceptor = certificate.as_ref().map(Certificate::acceptor).transpose().map_err(io::Error::other)?;
        let Settings { guard, how, max_hold, hold_budget, hold_timeout, max_body, drain_delay, drain_timeout } =
            settings;
        let rules = Arc::new(Rules {
            in_force: Arc::clone(&in_force),
            guard,
            how,
            hold: Hold::new(max_hold, hold_budget, hold_timeout),
            figures: Figures::new(&mut registry),
            max_body,
            complained: false.into(),
            streams,
            clock: clock::now,
        });
        let methods = Methods::new(rules, readiness.clone());
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let drain = async {
            stop.cancelled().await;
            readiness.draining();
            tracing::info!("ending: health says so, new requests are served for {drain_delay:?} more");
            tokio::time::sleep(drain_delay).await;
            closing.cancel();
        };
        let streams = async {
            let threads = connections::a_thread_a_processor();
            let streams = connections::serve(
                listeners.grpc,
                threads,
                methods.clone().over(acceptor),
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
        let telemetry = Telemetry { in_force, readiness: readiness.clone(), registry: Arc::new(registry) };
        let telemetry = async {
            let served = tokio::select! {
                served = telemetry::serve(listeners.metrics, telemetry, closed.clone()) => served,
                // Whoever keeps a connection open without asking anything is not waited for.
                () = async { closed.cancelled().await; tokio::time::sleep(LAST_ANSWER).await } => Ok(()),
            };
            // Without it nobody sees what is in force here.
            stop.cancel();
            served
        };
        let follow = async {
            match certificate {
                Some(certificate) => certificate.follow().await,
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
