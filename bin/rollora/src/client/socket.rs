//! Client of the control socket of a `rollora local`.

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

/// Maximum time for a whole response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a response, and of one line of a watch, in bytes.
const MAX_RESPONSE: usize = 16 << 20;

/// The Rollout of a `rollora local`.
#[derive(Debug, Clone)]
pub(super) struct LocalRolloutRef {
    /// State folder of the `rollora local`.
    pub(super) state: PathBuf,
    /// Name that the Rollout must have. `None` accepts any.
    pub(super) name: Option<String>,
}

#[derive(Debug)]
pub(crate) struct SocketClient {
    rollout_ref: LocalRolloutRef,
}

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

    pub(crate) async fn overview(&self) -> Result<Overview, RolloutClientError> {
        check_rollout_name(self.request(Method::GET, "/overview", Vec::new()).await?, &self.rollout_ref)
    }

    pub(crate) async fn submit_intent(&self, intent: &IntentRequest) -> Result<Intent, RolloutClientError> {
        let body = serde_json::to_vec(intent)
            .map_err(|error| self.bad_response(format!("cannot encode the request: {error}")))?;
        self.request(Method::POST, "/intent", body).await
    }

    pub(crate) async fn watch(&self) -> Result<SocketOverviewWatch, RolloutClientError> {
        let (response, connection) = self.send(Method::GET, "/watch", Vec::new()).await?;
        let (body, rollout_ref) = (response.into_body(), self.rollout_ref.clone());
        Ok(SocketOverviewWatch { body, buffer: Vec::new(), rollout_ref, _connection: connection })
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, RolloutClientError> {
        let response = timeout(REQUEST_TIMEOUT, async {
            let (response, _connection) = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
            let body = body.map_err(|error| self.bad_response(format!("the response was cut off: {error}")))?;
            Ok((status, body.to_bytes()))
        });
        let (status, body) = response
            .await
            .map_err(|_| self.bad_response(format!("no response within {} s", REQUEST_TIMEOUT.as_secs())))??;
        if status != StatusCode::OK {
            let response = serde_json::from_slice::<ErrorResponse>(&body);
            let reason =
                response.map_or_else(|_| format!("`rollora local` responded with {status}"), |response| response.error);
            return Err(RolloutClientError::Refused(reason));
        }
        serde_json::from_slice(&body).map_err(|error| self.bad_response(other_version(&error)))
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
            _ => self.bad_response(format!("cannot connect: {error}")),
        })?;
        let failed = |error: hyper::Error| self.bad_response(format!("no response: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The reader of the response gets the error too.
            drop(connection.await);
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "rollora")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.bad_response(format!("cannot encode the request: {error}")))?;
        Ok((sender.send_request(request).await.map_err(failed)?, tasks))
    }

    fn bad_response(&self, problem: String) -> RolloutClientError {
        bad_response(&self.rollout_ref, problem)
    }
}

impl SocketOverviewWatch {
    /// Returns the next overview. Cancel safe: what was read so far is kept.
    pub(crate) async fn next(&mut self) -> Result<Overview, RolloutClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let read = serde_json::from_slice(&line);
                let read = read.map_err(|error| self.bad_response(other_version(&error)))?;
                return check_rollout_name(read, &self.rollout_ref);
            }
            match self.body.frame().await {
                None | Some(Err(_)) => {
                    return Err(RolloutClientError::WatchEnded("`rollora local` has exited".to_owned()));
                }
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
            if self.buffer.len() > MAX_RESPONSE {
                return Err(self.bad_response(format!("the response is longer than {MAX_RESPONSE} bytes")));
            }
        }
    }

    fn bad_response(&self, problem: String) -> RolloutClientError {
        bad_response(&self.rollout_ref, problem)
    }
}

/// Fails if the overview is of another Rollout than the requested one.
fn check_rollout_name(overview: Overview, rollout_ref: &LocalRolloutRef) -> Result<Overview, RolloutClientError> {
    let found = &overview.rollout.metadata.name;
    match &rollout_ref.name {
        Some(requested) if requested != found => {
            let (found, requested) = (found.clone(), requested.clone());
            Err(RolloutClientError::RolloutMismatch { state: rollout_ref.state.clone(), found, requested })
        }
        _ => Ok(overview),
    }
}

fn other_version(error: &serde_json::Error) -> String {
    format!("the response is of another version of `rollora`: use the version that runs `rollora local` ({error})")
}
fn bad_response(rollout_ref: &LocalRolloutRef, problem: String) -> RolloutClientError {
    RolloutClientError::BadResponse { state: rollout_ref.state.clone(), problem }
}
