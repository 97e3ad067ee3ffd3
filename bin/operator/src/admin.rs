//! HTTP endpoints for monitoring: `/metrics`, `/readyz`, `/livez`. They need no authentication.

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

/// Content type of the OpenMetrics text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State served by the HTTP endpoints.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) client: CachedClient,
    /// Whether this replica holds the Lease.
    pub(crate) is_leader: Arc<AtomicBool>,
    /// Why the Lease cannot be acquired or renewed, if so.
    pub(crate) lease_problem: LeaseProblem,

    pub(crate) stats: Arc<ReconcileStats>,
}

/// Serves the endpoints until `end` completes.
pub(crate) async fn serve(
    listener: TcpListener,
    state: AdminState,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(|| async { "ok\n" }))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(end).await
}

/// Ready is the leader once it has listed all Rollouts, and a standby as long as it can access the Lease.
async fn readyz(State(state): State<AdminState>) -> (StatusCode, String) {
    if !state.is_leader.load(Ordering::Relaxed) {
        return match state.lease_problem.get() {
            None => (StatusCode::OK, "ok: standby, another replica holds the Lease\n".to_owned()),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        };
    }
    if state.client.has_synced() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let problems = state.client.watch_problems();
    let lines: Vec<String> = problems.iter().map(|(kind, problem)| format!("{kind}: {problem}")).collect();
    let text = if lines.is_empty() { "the Rollouts have not been listed yet".to_owned() } else { lines.join("\n") };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n"))
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let rollouts = if state.client.has_synced() {
        state.client.rollouts().await.map(|found| found.into_iter().map(|rollout| rollout.value).collect())
    } else {
        Ok(Vec::new())
    };
    let snapshot = MetricsSnapshot {
        is_leader: state.is_leader.load(Ordering::Relaxed),
        watch_problems: state
            .client
            .watch_problems()
            .iter()
            .map(|(kind, problem)| (kind.clone(), problem.reason().to_owned()))
            .collect(),
        rollouts: rollouts.unwrap_or_default(),
        now: now(),
    };
    match metrics::encode(&snapshot, &state.stats) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
