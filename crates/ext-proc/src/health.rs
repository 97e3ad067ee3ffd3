//! gRPC health service, for every service name that probes of ext_proc servers use.

use crate::{
    grpc::{CallFlow, CallHandler, GrpcStatus, ReplyQueue},
    proto::{self, ProcessorReply},
    readiness::{ServerReadiness, ServerStage},
};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use std::{
    fmt,
    task::{Context, Poll, ready},
};

/// Always serving: restarting a server that has no rules yet would not help.
const LIVENESS_SERVICE: &str = "liveness";

/// Service names for readiness: the whole server, the ext_proc service, and the names in the manifests of upstream's
/// servers.
const READINESS_SERVICES: [&str; 4] =
    ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];

/// Returns the status of the service `name`. `None` if there is no such service.
fn serving_status(name: &str, stage: ServerStage) -> Option<proto::ServingStatus> {
    match stage {
        _ if name == LIVENESS_SERVICE => Some(proto::ServingStatus::Serving),
        _ if !READINESS_SERVICES.contains(&name) => None,
        ServerStage::Serving => Some(proto::ServingStatus::Serving),
        ServerStage::Starting | ServerStage::Draining => Some(proto::ServingStatus::NotServing),
    }
}

fn health_response(status: proto::ServingStatus) -> ProcessorReply {
    ProcessorReply::Encoded(proto::HealthCheckResponse { status: status.into() }.encode_to_vec().into())
}

/// Method `Check`: returns the current status.
#[derive(Debug)]
pub(crate) struct HealthCheck(pub(crate) ServerReadiness);

impl CallHandler for HealthCheck {
    type Message = proto::HealthCheckRequest;

    fn handle_message(
        &mut self,
        proto::HealthCheckRequest { service }: proto::HealthCheckRequest,
        replies: &mut ReplyQueue,
    ) -> CallFlow {
        match serving_status(&service, self.0.stage()) {
            Some(status) => {
                replies.push_back(health_response(status));
                CallFlow::End(GrpcStatus::OK)
            }
            None => CallFlow::End(GrpcStatus::not_found(format!("unknown service `{service}`"))),
        }
    }
}

/// Method `Watch`: streams the status whenever it changes.
pub(crate) struct HealthWatch {
    readiness: ServerReadiness,
    /// Stream of statuses; `None` until the request has arrived.
    statuses: Option<BoxStream<'static, proto::ServingStatus>>,
}

impl fmt::Debug for HealthWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthWatch").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl HealthWatch {
    pub(crate) fn new(readiness: ServerReadiness) -> Self {
        Self { readiness, statuses: None }
    }
}

impl CallHandler for HealthWatch {
    type Message = proto::HealthCheckRequest;

    fn handle_message(
        &mut self,
        proto::HealthCheckRequest { service }: proto::HealthCheckRequest,
        _: &mut ReplyQueue,
    ) -> CallFlow {
        let mut stages = self.readiness.subscribe();
        stages.mark_changed();
        // The stream ends with the last stage, so that it does not delay a drain.
        let statuses = stream::unfold(Some((stages, service)), |state| async {
            let (mut stages, service) = state?;
            stages.changed().await.ok()?;
            let stage = *stages.borrow_and_update();
            let status = serving_status(&service, stage).unwrap_or(proto::ServingStatus::ServiceUnknown);
            let next = (stage != ServerStage::Draining).then_some((stages, service));
            Some((status, next))
        });
        self.statuses = Some(statuses.boxed());
        CallFlow::Continue
    }

    fn poll_ready(&mut self, context: &mut Context<'_>, replies: &mut ReplyQueue) -> Poll<CallFlow> {
        let Some(statuses) = &mut self.statuses else { return Poll::Ready(CallFlow::Continue) };
        loop {
            match ready!(statuses.poll_next_unpin(context)) {
                Some(status) => replies.push_back(health_response(status)),
                None => return Poll::Ready(CallFlow::End(GrpcStatus::OK)),
            }
        }
    }
}
