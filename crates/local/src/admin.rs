//! HTTP server of `--status-listen`: `/metrics`, `/rules` and `/readyz`, readable without credentials. It changes
//! nothing.

#[cfg(test)]
mod tests;

use crate::{clock, document_store::LocalDocumentStore, fleet::LocalFleet};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use rollora_api::router_report::RulesReport;
use std::{io, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct AdminState {
    store: LocalDocumentStore,
    fleet: LocalFleet,
    registry: Arc<Registry>,
    servers: ServerGauges,
}

#[derive(Clone, Default)]
struct ServerGauges {
    ready: Family<ServerLabels, Gauge>,
    in_flight: Family<ServerLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

impl ServerGauges {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "rollora_server_ready",
            "Whether the gateway sends requests to the server",
            self.ready.clone(),
        );
        let help = "Requests that the server is answering";
        registry.register("rollora_server_requests_in_flight", help, self.in_flight.clone());
    }

    /// Sets the gauges to the current state of the servers.
    fn update(&self, fleet: &LocalFleet) {
        for server in fleet.server_views() {
            let label = ServerLabels { server: server.name };
            self.ready.get_or_create(&label).set(i64::from(server.ready));
            self.in_flight.get_or_create(&label).set(i64::try_from(server.in_flight).unwrap_or(i64::MAX));
        }
    }
}

/// Serves until `stop` is canceled.
pub(crate) async fn serve(
    listener: TcpListener,
    store: LocalDocumentStore,
    fleet: LocalFleet,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut registry = Registry::default();
    let servers = ServerGauges::default();
    store.rules().register(&mut registry);
    servers.register(&mut registry);
    let state = AdminState { store, fleet, registry: Arc::new(registry), servers };
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/rules", get(rules))
        .route("/readyz", get(readyz))
        .with_state(state);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(state): State<AdminState>) -> Response {
    state.servers.update(&state.fleet);
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &state.registry) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn rules(State(state): State<AdminState>) -> Json<RulesReport> {
    Json(state.store.rules().report(clock::now()))
}

async fn readyz(State(state): State<AdminState>) -> (StatusCode, &'static str) {
    match state.fleet.servers().ready_count() {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "no vLLM server is ready\n"),
        _ => (StatusCode::OK, "ok\n"),
    }
}
