//! The read-only HTTP endpoints: `/status`, `/metrics`, `/readyz` and `/livez`.

use crate::{
    metrics::{Ages, SidecarMetrics},
    supervisor::RunningSidecar,
};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use rollora_api::{
    adapters::DesiredAdapters,
    sidecar_status::{ReadinessStatus, SidecarStatus},
};
use rollora_sidecar::{Heartbeat, full_status};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// `/readyz` answers from a poll that is not older than this.
const MAX_POLL_AGE: Duration = Duration::from_millis(250);
/// How long `/readyz` waits for a fresh poll: a kubelet probe times out after one second.
const FRESH_POLL_TIMEOUT: Duration = Duration::from_millis(750);
/// A main loop without an iteration for this long is stuck.
const LOOP_STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The state that the HTTP endpoints serve.
#[derive(Clone)]
pub(crate) struct SidecarReport {
    running: watch::Receiver<Option<RunningSidecar>>,
    metrics: Arc<SidecarMetrics>,
    config_since: watch::Receiver<Option<Instant>>,
}

impl SidecarReport {
    pub(crate) fn new(
        running: watch::Receiver<Option<RunningSidecar>>,
        metrics: Arc<SidecarMetrics>,
        config_since: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self { running, metrics, config_since }
    }

    fn status(&self) -> Arc<SidecarStatus> {
        self.running.borrow().as_ref().map(|running| running.status.borrow().clone()).unwrap_or_default()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        self.running.borrow().as_ref().and_then(|running| *running.heartbeat.borrow())
    }

    /// Waits until the last poll of vLLM is fresh.
    async fn wait_for_fresh_poll(&self) {
        let mut running = self.running.clone();
        loop {
            let current = running.borrow_and_update().clone();
            let fresh_poll = async {
                match current {
                    Some(mut current) => current.heartbeat.wait_for(|heartbeat| is_fresh(*heartbeat)).await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                true = fresh_poll => return,
                Ok(()) = running.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    async fn readiness(&self) -> ReadinessStatus {
        let is_fresh = timeout(FRESH_POLL_TIMEOUT, self.wait_for_fresh_poll()).await.is_ok();
        let readiness = self.status().readiness.clone();
        if is_fresh || !readiness.ready {
            return readiness;
        }
        let age = self
            .heartbeat()
            .and_then(|heartbeat| heartbeat.last_poll)
            .map(|last_poll| last_poll.elapsed())
            .unwrap_or_default();
        let message = format!("vLLM has not answered for {} ms", age.as_millis());
        ReadinessStatus { ready: false, reason: "NoAnswer".to_owned(), message }
    }
}

fn is_fresh(heartbeat: Option<Heartbeat>) -> bool {
    heartbeat.and_then(|heartbeat| heartbeat.last_poll).is_some_and(|last_poll| last_poll.elapsed() <= MAX_POLL_AGE)
}

/// Serves the endpoints until `stop` is canceled.
pub(crate) async fn serve(listener: TcpListener, report: SidecarReport, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(livez))
        .with_state(report);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn status(State(report): State<SidecarReport>) -> Json<SidecarStatus> {
    let Some(running) = report.running.borrow().clone() else { return Json::default() };
    running.usage_poll_boost.request();
    Json(full_status(&running.status, &running.heartbeat))
}

async fn metrics(State(report): State<SidecarReport>) -> Response {
    let age = |field: fn(Heartbeat) -> Option<Instant>| report.heartbeat().and_then(field).map(|then| then.elapsed());
    let (last_poll, last_reconcile) = (age(|heartbeat| heartbeat.last_poll), age(|heartbeat| heartbeat.last_reconcile));
    let config = report.config_since.borrow().map(|since| since.elapsed());
    match report.metrics.encode(&report.status(), Ages { config, last_poll, last_reconcile }) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(report): State<SidecarReport>) -> (StatusCode, String) {
    let ReadinessStatus { ready, reason, message } = report.readiness().await;
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{reason}: {message}\n"))
}

async fn livez(State(report): State<SidecarReport>) -> (StatusCode, &'static str) {
    match report.heartbeat() {
        Some(heartbeat) if heartbeat.last_iteration.elapsed() > LOOP_STALL_TIMEOUT => {
            (StatusCode::SERVICE_UNAVAILABLE, "the main loop is stuck\n")
        }
        _ => (StatusCode::OK, "ok\n"),
    }
}

/// Publishes since when the active content is active.
pub(crate) async fn track_config_since(
    mut desired: watch::Receiver<Option<Arc<DesiredAdapters>>>,
    config_since: watch::Sender<Option<Instant>>,
) {
    loop {
        if desired.borrow_and_update().is_some() {
            config_since.send_replace(Some(Instant::now()));
        }
        if desired.changed().await.is_err() {
            return;
        }
    }
}
