//! gRPC's health service, under every name that probes of ext_proc servers ask for.

use crate::{
    grpc::{Next, Replies, Status, Work},
    protocol::{HealthCheckRequest, HealthCheckResponse, Reply, ServingStatus},
    readiness::{Readiness, Stage},
};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use std::{
    fmt,
    task::{Context, Poll, ready},
};

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

fn told(status: ServingStatus) -> Reply {
    Reply::Encoded(HealthCheckResponse { status: status.into() }.encode_to_vec().into())
}

/// `Check`: how it is now.
#[derive(Debug)]
pub(crate) struct Check(pub(crate) Readiness);

impl Work for Check {
    type Message = HealthCheckRequest;

    fn take(&mut self, HealthCheckRequest { service }: HealthCheckRequest, replies: &mut Replies) -> Next {
        match status(&service, self.0.stage()) {
            Some(status) => {
                replies.push_back(told(status));
                Next::End(Status::OK)
            }
            None => Next::End(Status::not_found(format!("there is no service `{service}` here"))),
        }
    }
}

/// `Watch`: how it is, whenever that changes.
pub(crate) struct Watch {
    readiness: Readiness,
    /// The stages as they come, once it is known whose health is asked for.
    told: Option<BoxStream<'static, ServingStatus>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn new(readiness: Readiness) -> Self {
        Self { readiness, told: None }
    }
}

impl Work for Watch {
    type Message = HealthCheckRequest;

    fn take(&mut self, HealthCheckRequest { service }: HealthCheckRequest, _: &mut Replies) -> Next {
        let mut stages = self.readiness.stages();
        stages.mark_changed();
        // Ends with the last stage, so that it holds up no drain.
        let told = stream::unfold(Some((stages, service)), |state| async {
            let (mut stages, service) = state?;
            stages.changed().await.ok()?;
            let stage = *stages.borrow_and_update();
            let status = status(&service, stage).unwrap_or(ServingStatus::ServiceUnknown);
            let next = (stage != Stage::Draining).then_some((stages, service));
            Some((status, next))
        });
        self.told = Some(told.boxed());
        Next::Message
    }

    fn poll_next(&mut self, context: &mut Context<'_>, replies: &mut Replies) -> Poll<Next> {
        let Some(stages) = &mut self.told else { return Poll::Ready(Next::Message) };
        loop {
            match ready!(stages.poll_next_unpin(context)) {
                Some(status) => replies.push_back(told(status)),
                None => return Poll::Ready(Next::End(Status::OK)),
            }
        }
    }
}
