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

use super::answer::{Body, json_answer};
use super::knobs::Death;
use super::ledger::Ledger;
use super::server::Server;

/// Answers what stands behind `/sim/`.
pub(super) async fn answer(server: &Server, method: &Method, path: &str, body: &Bytes) -> Response<Body> {
    let (status, value) = match (method.as_str(), path) {
        ("GET", "knobs") => (StatusCode::OK, json!(server.knobs())),
        ("PATCH", "knobs") => patch(server, body),
        ("GET", "requests") => (StatusCode::OK, json!(server.ledger().counters)),
        ("DELETE", "requests") => {
            *server.ledger() = Ledger::default();
            (StatusCode::OK, json!({}))
        }
        ("GET", "log") => (StatusCode::OK, json!(server.ledger().log)),
        ("POST", "crash") => {
            let never = server.die(Death::Cut, "told to crash".to_owned()).await;
            (never.status(), never.body())
        }
        _ => (StatusCode::NOT_FOUND, json!({ "error": format!("the simulator has no {method} /sim/{path}") })),
    };
    json_answer(status, &value)
}

fn patch(server: &Server, body: &Bytes) -> (StatusCode, Value) {
    let patched = serde_json::from_slice::<Map<String, Value>>(body).and_then(|fields| server.knobs().patched(fields));
    match patched {
        Ok(knobs) => {
            let shown = json!(knobs);
            server.turn(|current| *current = knobs);
            (StatusCode::OK, shown)
        }
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "error": format!("cannot turn these knobs: {error}") })),
    }
}
