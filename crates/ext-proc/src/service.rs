//! The gRPC methods: which one a request asks for, under tonic's framing.

use crate::{
    health,
    processor::{Processor, Rules},
    protocol::{
        HEALTH_CHECK_PATH, HEALTH_WATCH_PATH, HealthCheckRequest, HealthCheckResponse, PROCESS_PATH, ProcessingRequest,
        Reply, Wire,
    },
    readiness::{Readiness, Stage},
    stream::{ReplyStream, Timed, Work},
};
use futures_util::future::{Ready, ready};
use http_body::Body;
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, Streaming, body::Body as GrpcBody, server::Grpc};

/// What a message holds besides a body, at most.
const AROUND_A_BODY: usize = 1024 * 1024;

/// All methods; cheap to clone.
#[derive(Clone)]
pub(crate) struct Methods {
    rules: Arc<Rules>,
    readiness: Readiness,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rules, readiness, tls } = self;
        let mut methods = f.debug_struct("Methods");
        methods.field("rules", rules).field("readiness", readiness).field("tls", &tls.is_some()).finish()
    }
}

impl Methods {
    pub(crate) fn new(rules: Arc<Rules>, readiness: Readiness) -> Self {
        Self { rules, readiness, tls: None }
    }

    /// The same, for connections that are accepted with this.
    pub(crate) fn over(self, tls: Option<TlsAcceptor>) -> Self {
        Self { tls, ..self }
    }

    pub(crate) fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.clone()
    }

    /// Answers one call.
    pub(crate) async fn answer<B>(self, request: http::Request<B>) -> http::Response<GrpcBody>
    where
        B: Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        match request.uri().path() {
            // Without rules every name would pass as it is, the ones that are nobody's adapter among them.
            PROCESS_PATH if self.readiness.stage() == Stage::Starting => {
                Status::unavailable("the rewrites have not been read yet").into_http()
            }
            PROCESS_PATH => {
                // A body that is too long should still arrive, so that its client can be told.
                let longest = self.rules.max_body.saturating_mul(2).saturating_add(AROUND_A_BODY);
                process(longest, move || Timed::new(Processor::new(Arc::clone(&self.rules))), request).await
            }
            HEALTH_CHECK_PATH => health().unary(health::Check(self.readiness), request).await,
            HEALTH_WATCH_PATH => health().server_streaming(health::Watch(self.readiness), request).await,
            other => Status::unimplemented(format!("there is no method {other} here")).into_http(),
        }
    }
}

fn health() -> Grpc<Wire<HealthCheckResponse, HealthCheckRequest>> {
    Grpc::new(Wire::new())
}

/// Answers a call of the external processor's one method, with messages of at most this length.
pub(crate) async fn process<B, M, W>(longest: usize, begin: M, request: http::Request<B>) -> http::Response<GrpcBody>
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    M: Fn() -> W + Send + Sync + 'static,
    W: Work + Send + Unpin + 'static,
{
    Grpc::new(Wire::<Reply, ProcessingRequest>::new())
        .apply_max_message_size_config(Some(longest), None)
        .streaming(Process(begin), request)
        .await
}

/// The external processor's one method, with what begins the work of a stream.
#[derive(Debug)]
struct Process<M>(M);

impl<M, W> tower::Service<Request<Streaming<ProcessingRequest>>> for Process<M>
where
    M: Fn() -> W,
    W: Work + Send + Unpin + 'static,
{
    type Response = Response<ReplyStream<Streaming<ProcessingRequest>, W>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let work = (self.0)();
        ready(Ok(Response::new(ReplyStream::new(request.into_inner(), work))))
    }
}
