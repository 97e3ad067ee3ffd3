//! What anybody may read where `--status-listen` says: `/metrics`, `/rules`, `/readyz`. Nothing can be changed there.

use crate::{clock, fleet::LocalFleet, store::LocalStore};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use rollora_api::router_report::RulesReport;
use std::{io, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The content type of Prometheus' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Clone)]
struct Telemetry {
    store: LocalStore,
    fleet: LocalFleet,
    registry: Arc<Registry>,
}

/// Answers until it is stopped.
pub(crate) async fn serve(
    listener: TcpListener,
    store: LocalStore,
    fleet: LocalFleet,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut registry = Registry::default();
    store.rules().register(&mut registry);
    let telemetry = Telemetry { store, fleet, registry: Arc::new(registry) };
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/rules", get(rules))
        .route("/readyz", get(readyz))
        .with_state(telemetry);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &telemetry.registry) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn rules(State(telemetry): State<Telemetry>) -> Json<RulesReport> {
    Json(telemetry.store.rules().report(clock::now()))
}

async fn readyz(State(telemetry): State<Telemetry>) -> (StatusCode, &'static str) {
    match telemetry.fleet.servers().ready() {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "no vLLM server is ready\n"),
        _ => (StatusCode::OK, "ok\n"),
    }
}
