//! Talks to the `rollora local` of a state folder, over its Unix socket.

#[cfg(test)]
mod tests;

use super::RolloutClientError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rollora_api::rollout::Intent;
use rollora_local::{ErrorResponse, IntentRequest, Overview, SOCKET_NAME};
use serde::de::DeserializeOwned;
use std::{io, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

/// How long an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer, and the longest line of a watch.
const MAX_RESPONSE: usize = 16 << 20;

/// Which Rollout of which `rollora local`.
#[derive(Debug, Clone)]
pub(super) struct LocalRolloutRef {
    /// Its state folder.
    pub(super) state: PathBuf,
    /// The Rollout's name; the only one there is if absent.
    pub(super) name: Option<String>,
}

/// One Rollout of one `rollora local`.
#[derive(Debug)]
pub(crate) struct SocketClient {
    rollout_ref: LocalRolloutRef,
}

/// Overviews as they change.
#[derive(Debug)]
pub(crate) struct SocketOverviewWatch {
    body: Incoming,
    buffer: Vec<u8>,
    rollout_ref: LocalRolloutRef,
    _connection: JoinSet<()>,
}

impl SocketClient {
    pub(super) fn new(state: PathBuf, rollout: Option<String>) -> Self {
        Self { rollout_ref: LocalRolloutRef { state, name: rollout } }
    }

    /// Everything, as it is now.
    pub(crate) async fn overview(&self) -> Result<Overview, RolloutClientError> {
        check_rollout_name(self.request(Method::GET, "/overview", Vec::new()).await?, &self.rollout_ref)
    }

    /// Hands in what a person asks for; gives it back with its id.
    pub(crate) async fn submit_intent(&self, intent: &IntentRequest) -> Result<Intent, RolloutClientError> {
        let body =
            serde_json::to_vec(intent).map_err(|error| self.bad_response(format!("cannot be asked: {error}")))?;
        self.request(Method::POST, "/intent", body).await
    }

    /// Everything, now and whenever it changed.
    pub(crate) async fn watch(&self) -> Result<SocketOverviewWatch, RolloutClientError> {
        let (response, connection) = self.send(Method::GET, "/watch", Vec::new()).await?;
        let (body, target) = (response.into_body(), self.rollout_ref.clone());
        Ok(SocketOverviewWatch { body, buffer: Vec::new(), rollout_ref: target, _connection: connection })
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, RolloutClientError> {
        let asked = timeout(REQUEST_TIMEOUT, async {
            let (response, _connection) = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
            Ok((status, body.map_err(|error| self.bad_response(format!("broke off its answer: {error}")))?.to_bytes()))
        });
        let (status, body) = asked
            .await
            .map_err(|_| self.bad_response(format!("did not answer within {} s", REQUEST_TIMEOUT.as_secs())))??;
        if status != StatusCode::OK {
            let said = serde_json::from_slice::<ErrorResponse>(&body);
            let said = said.map_or_else(|_| format!("it answered {status}"), |refused| refused.error);
            return Err(RolloutClientError::Refused(said));
        }
        serde_json::from_slice(&body).map_err(|error| self.bad_response(format!("is of another version: {error}")))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), RolloutClientError> {
        let socket = self.rollout_ref.state.join(SOCKET_NAME);
        let stream = UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => RolloutClientError::Forbidden(socket.clone()),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                RolloutClientError::NotRunning(self.rollout_ref.state.clone())
            }
            _ => self.bad_response(format!("cannot be reached: {error}")),
        })?;
        let failed = |error: hyper::Error| self.bad_response(format!("does not answer: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // How the connection ends is seen by whoever reads the answer.
            drop(connection.await);
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "rollora")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.bad_response(format!("cannot be asked: {error}")))?;
        Ok((sender.send_request(request).await.map_err(failed)?, tasks))
    }

    fn bad_response(&self, problem: String) -> RolloutClientError {
        bad_response(&self.rollout_ref, problem)
    }
}

impl SocketOverviewWatch {
    /// The next overview. May be given up and called again: what was read so far is kept.
    pub(crate) async fn next(&mut self) -> Result<Overview, RolloutClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let read = serde_json::from_slice(&line);
                let read = read.map_err(|error| self.bad_response(format!("is of another version: {error}")))?;
                return check_rollout_name(read, &self.rollout_ref);
            }
            match self.body.frame().await {
                None | Some(Err(_)) => {
                    return Err(RolloutClientError::WatchEnded("`rollora local` has ended".to_owned()));
                }
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
            if self.buffer.len() > MAX_RESPONSE {
                return Err(self.bad_response("said more than can be shown".to_owned()));
            }
        }
    }

    fn bad_response(&self, problem: String) -> RolloutClientError {
        bad_response(&self.rollout_ref, problem)
    }
}

/// The overview, where it is of the Rollout that was asked for.
fn check_rollout_name(overview: Overview, target: &LocalRolloutRef) -> Result<Overview, RolloutClientError> {
    let runs = &overview.rollout.metadata.name;
    match &target.name {
        Some(asked) if asked != runs => {
            let (runs, asked) = (runs.clone(), asked.clone());
            Err(RolloutClientError::RolloutMismatch { state: target.state.clone(), runs, asked })
        }
        _ => Ok(overview),
    }
}

fn bad_response(target: &LocalRolloutRef, problem: String) -> RolloutClientError {
    RolloutClientError::BadResponse { state: target.state.clone(), problem }
}
