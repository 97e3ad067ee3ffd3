//! What anybody may read: `/metrics`, `/readyz`, `/livez`.

use crate::{
    clock::now,
    metrics::{self, MetricsSnapshot},
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use rollora_cluster::{CachedClient, LeaseProblem};
use rollora_operator::ReconcileStats;
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
pub(crate) struct AdminState {
    pub(crate) client: CachedClient,
    /// Whether this replica holds the Lease.
    pub(crate) is_leader: Arc<AtomicBool>,
    /// Why it can neither have nor watch the Lease.
    pub(crate) lease_problem: LeaseProblem,
    /// What the operator has done.
    pub(crate) stats: Arc<ReconcileStats>,
}

/// Answers until `end`.
pub(crate) async fn serve(
    listener: TcpListener,
    telling: AdminState,
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
async fn readyz(State(telling): State<AdminState>) -> (StatusCode, String) {
    if !telling.is_leader.load(Ordering::Relaxed) {
        return match telling.lease_problem.get() {
            None => (StatusCode::OK, "ok: another replica works\n".to_owned()),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        };
    }
    if telling.client.has_synced() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let problems = telling.client.watch_problems();
    let words: Vec<String> = problems.iter().map(|(kind, problem)| format!("{kind}: {problem}")).collect();
    let words = if words.is_empty() { "the Rollouts have not been listed yet".to_owned() } else { words.join("\n") };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n"))
}

async fn metrics(State(telling): State<AdminState>) -> Response {
    let rollouts = if telling.client.has_synced() {
        telling.client.rollouts().await.map(|found| found.into_iter().map(|rollout| rollout.value).collect())
    } else {
        Ok(Vec::new())
    };
    let scene = MetricsSnapshot {
        is_leader: telling.is_leader.load(Ordering::Relaxed),
        watch_problems: telling
            .client
            .watch_problems()
            .iter()
            .map(|(kind, it)| (kind.clone(), it.reason().to_owned()))
            .collect(),
        rollouts: rollouts.unwrap_or_default(),
        now: now(),
    };
    match metrics::encode(&scene, &telling.stats) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
