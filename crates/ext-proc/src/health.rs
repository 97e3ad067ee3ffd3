//! gRPC's health service, under every name that probes of ext_proc servers ask for.

use crate::{
    grpc::{CallFlow, CallHandler, GrpcStatus, ReplyQueue},
    proto::{HealthCheckRequest, HealthCheckResponse, ProcessorReply, ServingStatus},
    readiness::{ServerReadiness, ServerStage},
};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use std::{
    fmt,
    task::{Context, Poll, ready},
};

/// Alive means that it answers: who would restart a server for having no rules yet would only make it worse.
const LIVENESS_SERVICE: &str = "liveness";

/// The names under which probes ask whether requests should come: the server's as a whole, the service's, and those
/// in the manifests of upstream's servers.
const READINESS_SERVICES: [&str; 4] =
    ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];

/// How the service `name` is; none where there is no such.
fn serving_status(name: &str, stage: ServerStage) -> Option<ServingStatus> {
    match stage {
        _ if name == LIVENESS_SERVICE => Some(ServingStatus::Serving),
        _ if !READINESS_SERVICES.contains(&name) => None,
        ServerStage::Serving => Some(ServingStatus::Serving),
        ServerStage::Starting | ServerStage::Draining => Some(ServingStatus::NotServing),
    }
}

fn health_response(status: ServingStatus) -> ProcessorReply {
    ProcessorReply::Encoded(HealthCheckResponse { status: status.into() }.encode_to_vec().into())
}

/// `Check`: how it is now.
#[derive(Debug)]
pub(crate) struct HealthCheck(pub(crate) ServerReadiness);

impl CallHandler for HealthCheck {
    type Message = HealthCheckRequest;

    fn handle_message(
        &mut self,
        HealthCheckRequest { service }: HealthCheckRequest,
        replies: &mut ReplyQueue,
    ) -> CallFlow {
        match serving_status(&service, self.0.stage()) {
            Some(status) => {
                replies.push_back(health_response(status));
                CallFlow::End(GrpcStatus::OK)
            }
            None => CallFlow::End(GrpcStatus::not_found(format!("there is no service `{service}` here"))),
        }
    }
}

/// `Watch`: how it is, whenever that changes.
pub(crate) struct HealthWatch {
    readiness: ServerReadiness,
    /// The stages as they come, once it is known whose health is asked for.
    statuses: Option<BoxStream<'static, ServingStatus>>,
}

impl fmt::Debug for HealthWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl HealthWatch {
    pub(crate) fn new(readiness: ServerReadiness) -> Self {
        Self { readiness, statuses: None }
    }
}

impl CallHandler for HealthWatch {
    type Message = HealthCheckRequest;

    fn handle_message(&mut self, HealthCheckRequest { service }: HealthCheckRequest, _: &mut ReplyQueue) -> CallFlow {
        let mut stages = self.readiness.subscribe();
        stages.mark_changed();
        // Ends with the last stage, so that it holds up no drain.
        let told = stream::unfold(Some((stages, service)), |state| async {
            let (mut stages, service) = state?;
            stages.changed().await.ok()?;
            let stage = *stages.borrow_and_update();
            let status = serving_status(&service, stage).unwrap_or(ServingStatus::ServiceUnknown);
            let next = (stage != ServerStage::Draining).then_some((stages, service));
            Some((status, next))
        });
        self.statuses = Some(told.boxed());
        CallFlow::Continue
    }

    fn poll_ready(&mut self, context: &mut Context<'_>, replies: &mut ReplyQueue) -> Poll<CallFlow> {
        let Some(stages) = &mut self.statuses else { return Poll::Ready(CallFlow::Continue) };
        loop {
            match ready!(stages.poll_next_unpin(context)) {
                Some(status) => replies.push_back(health_response(status)),
                None => return Poll::Ready(CallFlow::End(GrpcStatus::OK)),
            }
        }
    }
}
