//! `/status`, `/metrics`, `/readyz`, `/livez`. Nothing can be changed here.

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

/// The content type of Prometheus' text.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What is told about readiness is not older than this.
const MAX_POLL_AGE: Duration = Duration::from_millis(250);
/// A kubelet gives a probe a second; it is told what is known before that.
const FRESH_POLL_TIMEOUT: Duration = Duration::from_millis(750);
/// A loop that has not turned for this long is stuck.
const LOOP_STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is told.
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
        self.running.borrow().as_ref().map(|view| view.status.borrow().clone()).unwrap_or_default()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        self.running.borrow().as_ref().and_then(|view| *view.heartbeat.borrow())
    }

    /// Waits until vLLM was looked at a moment ago.
    async fn wait_for_fresh_poll(&self) {
        let mut view = self.running.clone();
        loop {
            let current = view.borrow_and_update().clone();
            let looked = async {
                match current {
                    Some(mut current) => current.heartbeat.wait_for(|pulse| is_fresh(*pulse)).await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                true = looked => return,
                Ok(()) = view.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    async fn readiness(&self) -> ReadinessStatus {
        let looked = timeout(FRESH_POLL_TIMEOUT, self.wait_for_fresh_poll()).await.is_ok();
        let readiness = self.status().readiness.clone();
        if looked || !readiness.ready {
            return readiness;
        }
        let age = self.heartbeat().and_then(|pulse| pulse.last_poll).map(|looked| looked.elapsed()).unwrap_or_default();
        let message = format!("vLLM has not answered for {} ms", age.as_millis());
        ReadinessStatus { ready: false, reason: "NoAnswer".to_owned(), message }
    }
}

fn is_fresh(pulse: Option<Heartbeat>) -> bool {
    pulse.and_then(|pulse| pulse.last_poll).is_some_and(|looked| looked.elapsed() <= MAX_POLL_AGE)
}

/// Answers until it is stopped.
pub(crate) async fn serve(listener: TcpListener, told: SidecarReport, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(livez))
        .with_state(told);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn status(State(told): State<SidecarReport>) -> Json<SidecarStatus> {
    let Some(view) = told.running.borrow().clone() else { return Json::default() };
    view.usage_poll_boost.request();
    Json(full_status(&view.status, &view.heartbeat))
}

async fn metrics(State(told): State<SidecarReport>) -> Response {
    let age = |of: fn(Heartbeat) -> Option<Instant>| told.heartbeat().and_then(of).map(|then| then.elapsed());
    let (look, reconciled) = (age(|pulse| pulse.last_poll), age(|pulse| pulse.last_reconcile));
    let config = told.config_since.borrow().map(|since| since.elapsed());
    match told.metrics.encode(&told.status(), Ages { config, last_poll: look, last_reconcile: reconciled }) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(told): State<SidecarReport>) -> (StatusCode, String) {
    let ReadinessStatus { ready, reason, message } = told.readiness().await;
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{reason}: {message}\n"))
}

async fn livez(State(told): State<SidecarReport>) -> (StatusCode, &'static str) {
    match told.heartbeat() {
        Some(pulse) if pulse.last_iteration.elapsed() > LOOP_STALL_TIMEOUT => {
            (StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n")
        }
        _ => (StatusCode::OK, "ok\n"),
    }
}

/// Since when what is in force is in force.
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
