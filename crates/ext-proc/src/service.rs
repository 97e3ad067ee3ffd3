//! The gRPC methods: which one a call asks for.

use crate::{
    connections::Answer,
    grpc::{Call, Slices, Status, refuse},
    health,
    processor::{Processor, Rules},
    protocol::{HEALTH_CHECK_PATH, HEALTH_WATCH_PATH, PROCESS_PATH},
    readiness::{Readiness, Stage},
    timed::Timed,
};
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// The longest question about health.
const LONGEST_QUESTION: usize = 64 * 1024;
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
}

impl Answer for Methods {
    async fn answer(self, request: Request<RecvStream>, answer: SendResponse<Slices>) {
        let (head, incoming) = request.into_parts();
        match head.uri.path() {
            // Without rules every name would pass as it is, the ones that are nobody's adapter among them.
            PROCESS_PATH if self.readiness.stage() == Stage::Starting => {
                refuse(answer, &Status::unavailable("the rewrites have not been read yet"));
            }
            PROCESS_PATH => {
                // A body that is too long should still arrive, so that its client can be told.
                let longest = self.rules.max_body.saturating_mul(2).saturating_add(AROUND_A_BODY);
                Call::new(incoming, answer, longest, Timed::new(Processor::new(self.rules))).await;
            }
            HEALTH_CHECK_PATH => {
                Call::new(incoming, answer, LONGEST_QUESTION, health::Check(self.readiness)).await;
            }
            HEALTH_WATCH_PATH => {
                Call::new(incoming, answer, LONGEST_QUESTION, health::Watch::new(self.readiness)).await;
            }
            other => refuse(answer, &Status::unimplemented(format!("there is no method {other} here"))),
        }
    }

    fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.clone()
    }
}
