//! What anybody may read: `/metrics`, `/readyz`, `/livez`.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rollora_cluster::{Documents, LeaseProblem};
use rollora_operator::Tally;
use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::net::TcpListener;

/// The content type of Prometheus' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Clone)]
pub(crate) struct Telling {
    pub(crate) documents: Documents,
    /// Whether this replica holds the Lease.
    pub(crate) leads: Arc<AtomicBool>,
    /// Why it can neither have nor watch the Lease.
    pub(crate) lease: LeaseProblem,
    /// What the operator has done.
    pub(crate) tally: Arc<dyn Fn() -> (u64, u64) + Send + Sync>,
}

/// The numbers of a tally.
pub(crate) fn numbers(tally: &Tally) -> (u64, u64) {
    (tally.reconciles(), tally.failures())
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: String,
}

/// Answers until `end`.
pub(crate) async fn serve(
    listener: TcpListener,
    telling: Telling,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(|| async { "ok\n" }))
        .with_state(telling);
    axum::serve(listener, router).with_graceful_shutdown(end).await
}

/// Ready is who works, or would at once: one that waits for the Lease has nothing to get ready.
async fn readyz(State(telling): State<Telling>) -> (StatusCode, String) {
    if !telling.leads.load(Ordering::Relaxed) {
        return match telling.lease.get() {
            None => (StatusCode::OK, "ok: another replica works\n".to_owned()),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        };
    }
    if telling.documents.is_listed() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let problems = telling.documents.problems();
    let words: Vec<String> = problems.iter().map(|(kind, problem)| format!("{kind}: {problem}")).collect();
    let words = if words.is_empty() { "the Rollouts have not been listed yet".to_owned() } else { words.join("\n") };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n"))
}

async fn metrics(State(telling): State<Telling>) -> Response {
    let mut registry = Registry::default();
    let leader = Gauge::<i64>::default();
    leader.set(i64::from(telling.leads.load(Ordering::Relaxed)));
    registry.register("rollora_operator_leader", "Whether this replica holds the Lease", leader);
    let (done, failed) = (telling.tally)();
    for (name, help, number) in [
        ("rollora_operator_reconciles", "Rollouts that were looked at", done),
        ("rollora_operator_reconcile_failures", "Those that are tried again because something failed", failed),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(number);
        registry.register(name, help, counter);
    }
    let problems = Family::<OfKind, Gauge>::default();
    for (kind, problem) in telling.documents.problems() {
        problems.get_or_create(&OfKind { kind, reason: problem.reason().to_owned() }).set(1);
    }
    registry.register("rollora_operator_watch_problem", "Kinds of which news may be missing now", problems);
    let rollouts = Family::<OfPhase, Gauge>::default();
    if telling.documents.is_listed()
        && let Ok(found) = telling.documents.rollouts().await
    {
        for rollout in found {
            let phase = format!("{:?}", rollout.value.status.unwrap_or_default().phase);
            rollouts.get_or_create(&OfPhase { phase }).inc();
        }
    }
    registry.register("rollora_operator_rollouts", "Rollouts by phase", rollouts);
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
