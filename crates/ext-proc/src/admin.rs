//! What anybody may read on the metrics port: `/rules`, `/metrics`, `/readyz`, `/livez`. Nothing can be changed there.

use crate::{clock, readiness::ServerReadiness};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rollora_api::router_report::RulesReport;
use rollora_router::active_rules::ActiveRules;
use std::{io, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The content type of Prometheus' text.
const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Debug, Clone)]
pub(crate) struct AdminState {
    pub(crate) active_rules: Arc<ActiveRules>,
    pub(crate) readiness: ServerReadiness,
    pub(crate) registry: Arc<Registry>,
}

/// Answers until it is stopped.
pub(crate) async fn serve(listener: TcpListener, telemetry: AdminState, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/rules", get(rules))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(async || "ok\n"))
        .with_state(telemetry);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn rules(State(telemetry): State<AdminState>) -> Json<RulesReport> {
    Json(telemetry.active_rules.report(clock::now()))
}

async fn metrics(State(telemetry): State<AdminState>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &telemetry.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(telemetry): State<AdminState>) -> (StatusCode, String) {
    let (ready, words) = telemetry.readiness.check();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, words + "\n")
}
