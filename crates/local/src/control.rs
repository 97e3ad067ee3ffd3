//! The control socket: what `rollora` asks of a running `rollora local`, over HTTP on a Unix socket for its owner only.
//!
//! `GET /overview` everything at this moment, `GET /watch` the same as a line of JSON with every change, `POST /intent`
//! a wish of a person.

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

/// The socket's name in the state folder.
pub const SOCKET_NAME: &str = "rollora.sock";
/// Changes that come closer than this are told together.
const COALESCE_DELAY: Duration = Duration::from_millis(50);

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntentRequest {
    /// What to do.
    pub verb: IntentKind,
    /// The revision that the person saw.
    pub revision: i64,
    /// The step that the person saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Who asks, as they say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
}

/// Why the control socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the control socket {path} cannot be made: {source}{}", path_length_hint(path))]
pub struct ControlError {
    path: PathBuf,
    source: io::Error,
}

/// Addresses of Unix sockets have 108 bytes.
fn path_length_hint(path: &Path) -> &'static str {
    if path.as_os_str().len() > 100 { "; its path is too long: give a shorter one with --state" } else { "" }
}

/// What the control socket tells of.
#[derive(Clone)]
pub(crate) struct ControlServer {
    pub(crate) store: LocalDocumentStore,
    pub(crate) fleet: LocalFleet,
    pub(crate) listen: SocketAddr,
    pub(crate) stop: CancellationToken,
}

/// Makes the socket. One that a killed process left is replaced: the folder's lock says that nobody listens there.
pub(crate) fn bind(folder: &Path) -> Result<UnixListener, ControlError> {
    let path = folder.join(SOCKET_NAME);
    bind_at(folder, &path).map_err(|source| ControlError { path, source })
}

/// The socket gets its mode where nobody else can reach it, and its place after that.
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

/// Answers until it is stopped.
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
        let picture = self.store.snapshot();
        let inputs = self.store.inputs();
        let file = |path: &Path, problem: &Option<String>| FileView {
            path: path.display().to_string(),
            problem: problem.clone(),
        };
        let now = clock::now();
        Overview {
            at: now,
            listen: Some(self.listen.to_string()),
            rollout: picture.rollout.as_ref().clone(),
            rollout_file: file(&inputs.rollout, &picture.problems.rollout),
            adapters_file: file(&inputs.adapters, &picture.problems.adapters),
            servers: self.fleet.server_views(),
            rules: self.store.rules().report(now),
            events: picture.events.iter().cloned().collect(),
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
    let view = control.store.subscribe_overview();
    stream::unfold((control, view, true), |(control, mut view, first)| async move {
        if !first {
            let changed = control.stop.run_until_cancelled(view.changed()).await;
            changed?.ok()?;
            tokio::time::sleep(COALESCE_DELAY).await;
        }
        view.mark_unchanged();
        let mut line = serde_json::to_vec(&control.overview()).ok()?;
        line.push(b'\n');
        Some((Ok(line.into()), (control, view, false)))
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
