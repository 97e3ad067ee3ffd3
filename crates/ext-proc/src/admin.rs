//! HTTP endpoints of the metrics port: `/rules`, `/metrics`, `/readyz` and `/livez`. They are read-only and need no
//! authentication.

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

/// Content type of the OpenMetrics text format.
const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State served by the HTTP endpoints.
#[derive(Debug, Clone)]
pub(crate) struct AdminState {
    pub(crate) active_rules: Arc<ActiveRules>,
    pub(crate) readiness: ServerReadiness,
    pub(crate) registry: Arc<Registry>,
}

/// Serves the endpoints until `stop` is canceled.
pub(crate) async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/rules", get(rules))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(async || "ok\n"))
        .with_state(state);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn rules(State(state): State<AdminState>) -> Json<RulesReport> {
    Json(state.active_rules.report(clock::now()))
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &state.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(state): State<AdminState>) -> (StatusCode, String) {
    let (ready, message) = state.readiness.check();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, message + "\n")
}
