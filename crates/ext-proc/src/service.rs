//! The gRPC methods: which one a request asks for, under tonic's framing.

use crate::{
    health,
    processor::{Processor, Rules},
    protocol::{
        HEALTH_CHECK_PATH, HEALTH_WATCH_PATH, HealthCheckRequest, HealthCheckResponse, PROCESS_PATH, ProcessingRequest,
        Reply, Wire,
    },
    readiness::{Readiness, Stage},
    stream::ReplyStream,
};
use futures_util::future::{Ready, ready};
use http_body::Body;
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Request, Response, Status, Streaming, server::Grpc};

/// What a message holds besides a body, at most.
const AROUND_A_BODY: usize = 1024 * 1024;

/// All methods; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Methods {
    rules: Arc<Rules>,
    readiness: Readiness,
}

impl Methods {
    pub(crate) fn new(rules: Arc<Rules>, readiness: Readiness) -> Self {
        Self { rules, readiness }
    }

    /// Answers one call.
    pub(crate) async fn answer<B>(self, request: http::Request<B>) -> http::Response<tonic::body::Body>
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
                Grpc::new(Wire::<Reply, ProcessingRequest>::new())
                    .apply_max_message_size_config(Some(longest), None)
                    .streaming(Process(self.rules), request)
                    .await
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

/// The external processor's one method.
#[derive(Debug)]
struct Process(Arc<Rules>);

impl tower::Service<Request<Streaming<ProcessingRequest>>> for Process {
    type Response = Response<ReplyStream<Streaming<ProcessingRequest>>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let processor = Processor::new(Arc::clone(&self.0));
        ready(Ok(Response::new(ReplyStream::new(request.into_inner(), processor))))
    }
}
