//! What anybody may read on the metrics port: `/rules`, `/metrics`, `/readyz`, `/livez`. Nothing can be changed there.

use crate::{clock, readiness::Readiness};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rollora_api::router_report::RulesReport;
use rollora_router::in_force::InForce;
use std::{io, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The content type of Prometheus' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    pub(crate) in_force: Arc<InForce>,
    pub(crate) readiness: Readiness,
    pub(crate) registry: Arc<Registry>,
}

/// Answers until it is stopped.
pub(crate) async fn serve(listener: TcpListener, telemetry: Telemetry, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/rules", get(rules))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(async || "ok\n"))
        .with_state(telemetry);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn rules(State(telemetry): State<Telemetry>) -> Json<RulesReport> {
    Json(telemetry.in_force.report(clock::now()))
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &telemetry.registry) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(telemetry): State<Telemetry>) -> (StatusCode, String) {
    let (ready, words) = telemetry.readiness.words();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, words + "\n")
}
