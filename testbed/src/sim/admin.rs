//! `/sim/…`: turning knobs and reading counters from outside. No such path exists in vLLM, no key guards it, and it
//! answers while everything else hangs.
//!
//! | request | effect |
//! |---|---|
//! | `GET /sim/knobs` | the knobs, as JSON |
//! | `PATCH /sim/knobs` | changes the fields that the body names; answers with all of them |
//! | `GET /sim/requests` | the counters, for each model |
//! | `DELETE /sim/requests` | counters and log begin anew |
//! | `GET /sim/log` | the last 4096 answered requests, oldest first |
//! | `POST /sim/crash` | cuts everything and ends the process, without an answer |

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::handler::{SimulatorBody, json_response};
use super::knobs::CrashMode;
use super::request_log::RequestLog;
use super::server::SimulatedServer;

/// Answers what stands behind `/sim/`.
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
            let never = server.crash_with(CrashMode::Cut, "told to crash".to_owned()).await;
            (never.status(), never.body())
        }
        _ => (StatusCode::NOT_FOUND, json!({ "error": format!("the simulator has no {method} /sim/{path}") })),
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
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "error": format!("cannot turn these knobs: {error}") })),
    }
}
