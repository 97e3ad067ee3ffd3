//! The control socket: an HTTP API for the `rollora` CLI on a Unix socket that only its owner can open.
//!
//! - `GET /overview`: the current [`Overview`].
//! - `GET /watch`: the current overview, and a new one after every change, as one JSON document per line.
//! - `POST /intent`: records a person's intent in the Rollout.

#[cfg(test)]
mod tests;

use crate::{
    clock,
    document_store::LocalDocumentStore,
    fleet::LocalFleet,
    overview::{ErrorResponse, FileView, Overview},
};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use rollora_api::rollout::{Intent, IntentKind};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    fs::{self, DirBuilder, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// File name of the control socket in the state folder.
pub const SOCKET_NAME: &str = "rollora.sock";
/// Delay of an overview after a change, so that several changes in quick succession are sent as one.
const COALESCE_DELAY: Duration = Duration::from_millis(50);

/// Body of `POST /intent`: an action that a person requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntentRequest {
    /// The action that is requested.
    pub verb: IntentKind,
    /// Revision of the rollout that the person saw.
    pub revision: i64,
    /// Index of the step that the person saw. `None` if the rollout was at no step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Name of the person as the client gives it, which is not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
}

/// Error while creating the control socket.
#[derive(Debug, thiserror::Error)]
#[error("the control socket {path} cannot be created: {source}{}", path_length_hint(path))]
pub struct ControlError {
    path: PathBuf,
    source: io::Error,
}

/// The address of a Unix socket has at most 108 bytes.
fn path_length_hint(path: &Path) -> &'static str {
    if path.as_os_str().len() > 100 {
        "; the path is too long for a socket: give a shorter one with --state"
    } else {
        ""
    }
}

#[derive(Clone)]
pub(crate) struct ControlServer {
    pub(crate) store: LocalDocumentStore,
    pub(crate) fleet: LocalFleet,
    pub(crate) listen: SocketAddr,
    pub(crate) stop: CancellationToken,
}

/// Creates the socket. It replaces one that a killed process left: the folder's lock shows that no other process
/// listens there.
pub(crate) fn bind(folder: &Path) -> Result<UnixListener, ControlError> {
    let path = folder.join(SOCKET_NAME);
    bind_at(folder, &path).map_err(|source| ControlError { path, source })
}

/// Sets the socket's mode in a private folder before it moves the socket to `path`, so that no other user can ever
/// connect.
fn bind_at(folder: &Path, path: &Path) -> io::Result<UnixListener> {
    let private = folder.join(".s");
    if private.exists() {
        fs::remove_dir_all(&private)?;
    }
    DirBuilder::new().mode(0o700).create(&private)?;
    let socket = private.join("s");
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    fs::rename(&socket, path)?;
    fs::remove_dir(&private)?;
    Ok(listener)
}

/// Serves until `control.stop` is canceled.
pub(crate) async fn serve(listener: UnixListener, control: ControlServer) -> io::Result<()> {
    let stop = control.stop.clone();
    let routes = Router::new()
        .route("/overview", get(overview))
        .route("/watch", get(watch))
        .route("/intent", post(submit_intent))
        .with_state(control);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

impl ControlServer {
    fn overview(&self) -> Overview {
        let snapshot = self.store.snapshot();
        let inputs = self.store.inputs();
        let file = |path: &Path, problem: &Option<String>| FileView {
            path: path.display().to_string(),
            problem: problem.clone(),
        };
        let now = clock::now();
        Overview {
            at: now,
            listen: Some(self.listen.to_string()),
            rollout: snapshot.rollout.as_ref().clone(),
            rollout_file: file(&inputs.rollout, &snapshot.problems.rollout),
            adapters_file: file(&inputs.adapters, &snapshot.problems.adapters),
            servers: self.fleet.server_views(),
            rules: self.store.rules().report(now),
            events: snapshot.events.iter().cloned().collect(),
        }
    }
}

async fn overview(State(control): State<ControlServer>) -> Json<Overview> {
    Json(control.overview())
}

async fn watch(State(control): State<ControlServer>) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(overview_stream(control))).into_response()
}

fn overview_stream(control: ControlServer) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let changes = control.store.subscribe_overview();
    stream::unfold((control, changes, true), |(control, mut changes, first)| async move {
        if !first {
            control.stop.run_until_cancelled(changes.changed()).await?.ok()?;
            tokio::time::sleep(COALESCE_DELAY).await;
        }
        changes.mark_unchanged();
        let mut line = serde_json::to_vec(&control.overview()).ok()?;
        line.push(b'\n');
        Some((Ok(line.into()), (control, changes, false)))
    })
}

async fn submit_intent(State(control): State<ControlServer>, Json(request): Json<IntentRequest>) -> Response {
    let IntentRequest { verb, revision, step, claimed_by } = request;
    let intent = Intent { id: Uuid::new_v4().to_string(), verb, revision, step, claimed_by };
    match control.store.record_intent(intent.clone()).await {
        Ok(()) => Json(intent).into_response(),
        Err(error) => (StatusCode::CONFLICT, Json(ErrorResponse { error: error.to_string() })).into_response(),
    }
}
