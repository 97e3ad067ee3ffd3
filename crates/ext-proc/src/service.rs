//! gRPC service: dispatches calls to the methods.

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

/// Maximum length of a health request, in bytes.
const MAX_HEALTH_REQUEST: usize = 64 * 1024;
/// Maximum length of a message without its body, in bytes.
const MESSAGE_OVERHEAD: usize = 1024 * 1024;

/// All gRPC methods of the server; cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcService {
    shared: Arc<ProcessorShared>,
    readiness: ServerReadiness,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for GrpcService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shared, readiness, tls } = self;
        let mut service = f.debug_struct("GrpcService");
        service.field("shared", shared).field("readiness", readiness).field("tls", &tls.is_some()).finish()
    }
}

impl GrpcService {
    pub(crate) fn new(shared: Arc<ProcessorShared>, readiness: ServerReadiness) -> Self {
        Self { shared, readiness, tls: None }
    }

    /// Returns the service for connections that `tls` accepts.
    pub(crate) fn with_tls(self, tls: Option<TlsAcceptor>) -> Self {
        Self { tls, ..self }
    }
}

impl Handler for GrpcService {
    async fn handle(self, request: Request<RecvStream>, respond: SendResponse<Slices>) {
        let (head, incoming) = request.into_parts();
        match head.uri.path() {
            // Without rules all names would be forwarded unchanged, including aliases that no server has.
            PROCESS_PATH if self.readiness.stage() == ServerStage::Starting => {
                refuse_call(respond, &GrpcStatus::unavailable("the rewrites have not been loaded yet"));
            }
            PROCESS_PATH => {
                // Twice the limit, so that a body that is too long still arrives and its client gets an error.
                let max_length = self.shared.max_body.saturating_mul(2).saturating_add(MESSAGE_OVERHEAD);
                GrpcCall::new(incoming, respond, max_length, ProcessorCall::new(Processor::new(self.shared))).await;
            }
            HEALTH_CHECK_PATH => {
                GrpcCall::new(incoming, respond, MAX_HEALTH_REQUEST, health::HealthCheck(self.readiness)).await;
            }
            HEALTH_WATCH_PATH => {
                GrpcCall::new(incoming, respond, MAX_HEALTH_REQUEST, health::HealthWatch::new(self.readiness)).await;
            }
            other => refuse_call(respond, &GrpcStatus::unimplemented(format!("unknown method {other}"))),
        }
    }

    fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.clone()
    }
}
