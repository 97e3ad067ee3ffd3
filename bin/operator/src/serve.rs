//! What anybody may read: `/metrics`, `/readyz`, `/livez`.

use crate::{
    clock::now,
    metrics::{self, Scene},
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
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
    pub(crate) tally: Arc<Tally>,
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
    let rollouts = if telling.documents.is_listed() {
        telling.documents.rollouts().await.map(|found| found.into_iter().map(|rollout| rollout.value).collect())
    } else {
        Ok(Vec::new())
    };
    let scene = Scene {
        leads: telling.leads.load(Ordering::Relaxed),
        problems: telling
            .documents
            .problems()
            .iter()
            .map(|(kind, it)| (kind.clone(), it.reason().to_owned()))
            .collect(),
        rollouts: rollouts.unwrap_or_default(),
        now: now(),
    };
    match metrics::text(&scene, &telling.tally) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
