//! gRPC's health service, under every name that probes of ext_proc servers ask for.

use crate::{
    protocol::{HealthCheckRequest, HealthCheckResponse, ServingStatus},
    readiness::{Readiness, Stage},
};
use futures_util::{
    future::{Ready, ready},
    stream::{self, BoxStream, StreamExt},
};
use std::task::{Context, Poll};
use tonic::{Request, Response, Status};

/// Alive means that it answers: who would restart a server for having no rules yet would only make it worse.
const LIVENESS: &str = "liveness";

/// The names under which probes ask whether requests should come: the server's as a whole, the service's, and those
/// in the manifests of upstream's servers.
const READINESS: [&str; 4] = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension"];

/// How the service `name` is; none where there is no such.
fn status(name: &str, stage: Stage) -> Option<ServingStatus> {
    match stage {
        _ if name == LIVENESS => Some(ServingStatus::Serving),
        _ if !READINESS.contains(&name) => None,
        Stage::Serving => Some(ServingStatus::Serving),
        Stage::Starting | Stage::Draining => Some(ServingStatus::NotServing),
    }
}

/// `Check`: how it is now.
#[derive(Debug, Clone)]
pub(crate) struct Check(pub(crate) Readiness);

impl tower::Service<Request<HealthCheckRequest>> for Check {
    type Response = Response<HealthCheckResponse>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HealthCheckRequest>) -> Self::Future {
        let name = &request.get_ref().service;
        ready(match status(name, self.0.stage()) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("there is no service `{name}` here"))),
        })
    }
}

/// `Watch`: how it is, whenever that changes.
#[derive(Debug, Clone)]
pub(crate) struct Watch(pub(crate) Readiness);

impl tower::Service<Request<HealthCheckRequest>> for Watch {
    type Response = Response<BoxStream<'static, Result<HealthCheckResponse, Status>>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HealthCheckRequest>) -> Self::Future {
        let name = request.into_inner().service;
        let mut stages = self.0.stages();
        stages.mark_changed();
        // Ends with the last stage, so that it holds up no drain.
        let told = stream::unfold(Some((stages, name)), |state| async {
            let (mut stages, name) = state?;
            stages.changed().await.ok()?;
            let stage = *stages.borrow_and_update();
            let status = status(&name, stage).unwrap_or(ServingStatus::ServiceUnknown);
            let next = (stage != Stage::Draining).then_some((stages, name));
            Some((Ok(HealthCheckResponse { status: status.into() }), next))
        });
        ready(Ok(Response::new(told.boxed())))
    }
}
