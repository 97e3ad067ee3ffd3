//! `/sim/…`: changes knobs and reads counters over HTTP. vLLM has no such path. No API key is needed, and these
//! requests are answered even while the server hangs.
//!
//! | request | effect |
//! |---|---|
//! | `GET /sim/knobs` | returns the knobs as JSON |
//! | `PATCH /sim/knobs` | changes the fields in the body; returns all of them |
//! | `GET /sim/requests` | returns the counters of each model |
//! | `DELETE /sim/requests` | resets counters and log |
//! | `GET /sim/log` | returns the last 4096 answered requests, the oldest first |
//! | `POST /sim/crash` | closes all connections and ends the process, without a response |

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::handler::{SimulatorBody, json_response};
use super::knobs::CrashMode;
use super::request_log::RequestLog;
use super::server::SimulatedServer;

/// Handles a request whose path is `/sim/` followed by `path`.
pub(super) async fn handle(
    server: &SimulatedServer,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Response<SimulatorBody> {
    let (status, value) = match (method.as_str(), path) {
        ("GET", "knobs") => (StatusCode::OK, json!(server.knobs())),
        ("PATCH", "knobs") => patch_knobs(server, body),
        ("GET", "requests") => (StatusCode::OK, json!(server.request_log().counters)),
        ("DELETE", "requests") => {
            *server.request_log() = RequestLog::default();
            (StatusCode::OK, json!({}))
        }
        ("GET", "log") => (StatusCode::OK, json!(server.request_log().log)),
        ("POST", "crash") => {
            let never = server.crash_with(CrashMode::Cut, "crash was requested".to_owned()).await;
            (never.status(), never.body())
        }
        _ => (StatusCode::NOT_FOUND, json!({ "error": format!("no such endpoint: {method} /sim/{path}") })),
    };
    json_response(status, &value)
}

fn patch_knobs(server: &SimulatedServer, body: &Bytes) -> (StatusCode, Value) {
    let patched = serde_json::from_slice::<Map<String, Value>>(body).and_then(|fields| server.knobs().patched(fields));
    match patched {
        Ok(knobs) => {
            let shown = json!(knobs);
            server.update_knobs(|current| *current = knobs);
            (StatusCode::OK, shown)
        }
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "error": format!("cannot change the knobs: {error}") })),
    }
}
