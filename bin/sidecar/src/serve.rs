//! `/status`, `/metrics`, `/readyz`, `/livez`. Nothing can be changed here.

use crate::{
    metrics::{Ages, Metrics},
    supervise::View,
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
use rollora_sidecar::{Pulse, whole_status};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// The content type of Prometheus' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What is told about readiness is not older than this.
const FRESH: Duration = Duration::from_millis(250);
/// A kubelet gives a probe a second; it is told what is known before that.
const PATIENCE: Duration = Duration::from_millis(750);
/// A loop that has not turned for this long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// What is told.
#[derive(Clone)]
pub(crate) struct Told {
    view: watch::Receiver<Option<View>>,
    metrics: Arc<Metrics>,
    config_since: watch::Receiver<Option<Instant>>,
}

impl Told {
    pub(crate) fn new(
        view: watch::Receiver<Option<View>>,
        metrics: Arc<Metrics>,
        config_since: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self { view, metrics, config_since }
    }

    fn status(&self) -> Arc<SidecarStatus> {
        self.view.borrow().as_ref().map(|view| view.status.borrow().clone()).unwrap_or_default()
    }

    fn pulse(&self) -> Option<Pulse> {
        self.view.borrow().as_ref().and_then(|view| *view.pulse.borrow())
    }

    /// Waits until vLLM was looked at a moment ago.
    async fn looked(&self) {
        let mut view = self.view.clone();
        loop {
            let current = view.borrow_and_update().clone();
            let looked = async {
                match current {
                    Some(mut current) => current.pulse.wait_for(|pulse| is_fresh(*pulse)).await.is_ok(),
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
        let looked = timeout(PATIENCE, self.looked()).await.is_ok();
        let readiness = self.status().readiness.clone();
        if looked || !readiness.ready {
            return readiness;
        }
        let age = self.pulse().and_then(|pulse| pulse.looked).map(|looked| looked.elapsed()).unwrap_or_default();
        let message = format!("vLLM has not answered for {} ms", age.as_millis());
        ReadinessStatus { ready: false, reason: "NoAnswer".to_owned(), message }
    }
}

fn is_fresh(pulse: Option<Pulse>) -> bool {
    pulse.and_then(|pulse| pulse.looked).is_some_and(|looked| looked.elapsed() <= FRESH)
}

/// Answers until it is stopped.
pub(crate) async fn serve(listener: TcpListener, told: Told, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(livez))
        .with_state(told);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn status(State(told): State<Told>) -> Json<SidecarStatus> {
    let Some(view) = told.view.borrow().clone() else { return Json::default() };
    view.onlookers.look();
    Json(whole_status(&view.status, &view.pulse))
}

async fn metrics(State(told): State<Told>) -> Response {
    let age = |of: fn(Pulse) -> Option<Instant>| told.pulse().and_then(of).map(|then| then.elapsed());
    let (look, reconciled) = (age(|pulse| pulse.looked), age(|pulse| pulse.reconciled));
    let config = told.config_since.borrow().map(|since| since.elapsed());
    match told.metrics.text(&told.status(), Ages { config, look, reconciled }) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(told): State<Told>) -> (StatusCode, String) {
    let ReadinessStatus { ready, reason, message } = told.readiness().await;
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{reason}: {message}\n"))
}

async fn livez(State(told): State<Told>) -> (StatusCode, &'static str) {
    match told.pulse() {
        Some(pulse) if pulse.turned.elapsed() > STUCK => (StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n"),
        _ => (StatusCode::OK, "ok\n"),
    }
}

/// Since when what is in force is in force.
pub(crate) async fn since(
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
