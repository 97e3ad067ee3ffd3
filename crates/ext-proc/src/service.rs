//! The gRPC methods: which one a call asks for.

use crate::{
    connections::Handler,
    grpc::{GrpcCall, GrpcStatus, Slices, refuse_call},
    health,
    processor::{Processor, ProcessorShared},
    processor_call::ProcessorCall,
    proto::{HEALTH_CHECK_PATH, HEALTH_WATCH_PATH, PROCESS_PATH},
    readiness::{ServerReadiness, ServerStage},
};
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// The longest question about health.
const MAX_HEALTH_REQUEST: usize = 64 * 1024;
/// What a message holds besides a body, at most.
const MESSAGE_OVERHEAD: usize = 1024 * 1024;

/// All methods; cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcService {
    shared: Arc<ProcessorShared>,
    readiness: ServerReadiness,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for GrpcService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shared: rules, readiness, tls } = self;
        let mut methods = f.debug_struct("Methods");
        methods.field("rules", rules).field("readiness", readiness).field("tls", &tls.is_some()).finish()
    }
}

impl GrpcService {
    pub(crate) fn new(shared: Arc<ProcessorShared>, readiness: ServerReadiness) -> Self {
        Self { shared, readiness, tls: None }
    }

    /// The same, for connections that are accepted with this.
    pub(crate) fn with_tls(self, tls: Option<TlsAcceptor>) -> Self {
        Self { tls, ..self }
    }
}

impl Handler for GrpcService {
    async fn handle(self, request: Request<RecvStream>, answer: SendResponse<Slices>) {
        let (head, incoming) = request.into_parts();
        match head.uri.path() {
            // Without rules every name would pass as it is, the ones that are nobody's adapter among them.
            PROCESS_PATH if self.readiness.stage() == ServerStage::Starting => {
                refuse_call(answer, &GrpcStatus::unavailable("the rewrites have not been read yet"));
            }
            PROCESS_PATH => {
                // A body that is too long should still arrive, so that its client can be told.
                let longest = self.shared.max_body.saturating_mul(2).saturating_add(MESSAGE_OVERHEAD);
                GrpcCall::new(incoming, answer, longest, ProcessorCall::new(Processor::new(self.shared))).await;
            }
            HEALTH_CHECK_PATH => {
                GrpcCall::new(incoming, answer, MAX_HEALTH_REQUEST, health::HealthCheck(self.readiness)).await;
            }
            HEALTH_WATCH_PATH => {
                GrpcCall::new(incoming, answer, MAX_HEALTH_REQUEST, health::HealthWatch::new(self.readiness)).await;
            }
            other => refuse_call(answer, &GrpcStatus::unimplemented(format!("there is no method {other} here"))),
        }
    }

    fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.clone()
    }
}
