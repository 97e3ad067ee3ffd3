//! Talks to the `rollora local` of a state folder, over its Unix socket.

#[cfg(test)]
mod tests;

use super::ClientError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rollora_api::rollout::Intent;
use rollora_local::{IntentRequest, Overview, Refused, SOCKET};
use serde::de::DeserializeOwned;
use std::{io, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer, and the longest line of a watch.
const MAX_ANSWER: usize = 16 << 20;

/// Which Rollout of which `rollora local`.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Its state folder.
    pub(super) state: PathBuf,
    /// The Rollout's name; the only one there is if absent.
    pub(super) rollout: Option<String>,
}

/// One Rollout of one `rollora local`.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
}

/// Overviews as they change.
#[derive(Debug)]
pub(crate) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    target: Target,
    _connection: JoinSet<()>,
}

impl Client {
    pub(super) fn new(state: PathBuf, rollout: Option<String>) -> Self {
        Self { target: Target { state, rollout } }
    }

    /// Everything, as it is now.
    pub(crate) async fn overview(&self) -> Result<Overview, ClientError> {
        meant(self.ask(Method::GET, "/overview", Vec::new()).await?, &self.target)
    }

    /// Hands in what a person asks for; gives it back with its id.
    pub(crate) async fn intend(&self, intent: &IntentRequest) -> Result<Intent, ClientError> {
        let body = serde_json::to_vec(intent).map_err(|error| self.broken(format!("cannot be asked: {error}")))?;
        self.ask(Method::POST, "/intent", body).await
    }

    /// Everything, now and whenever it changed.
    pub(crate) async fn watch(&self) -> Result<Watch, ClientError> {
        let (response, connection) = self.send(Method::GET, "/watch", Vec::new()).await?;
        let (body, target) = (response.into_body(), self.target.clone());
        Ok(Watch { body, buffer: Vec::new(), target, _connection: connection })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let asked = timeout(TIMEOUT, async {
            let (response, _connection) = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| self.broken(format!("broke off its answer: {error}")))?.to_bytes()))
        });
        let (status, body) =
            asked.await.map_err(|_| self.broken(format!("did not answer within {} s", TIMEOUT.as_secs())))??;
        if status != StatusCode::OK {
            let said = serde_json::from_slice::<Refused>(&body);
            let said = said.map_or_else(|_| format!("it answered {status}"), |refused| refused.error);
            return Err(ClientError::Refused(said));
        }
        serde_json::from_slice(&body).map_err(|error| self.broken(format!("is of another version: {error}")))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), ClientError> {
        let socket = self.target.state.join(SOCKET);
        let stream = UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(socket.clone()),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.target.state.clone())
            }
            _ => self.broken(format!("cannot be reached: {error}")),
        })?;
        let failed = |error: hyper::Error| self.broken(format!("does not answer: {error}"));
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
            .map_err(|error| self.broken(format!("cannot be asked: {error}")))?;
        Ok((sender.send_request(request).await.map_err(failed)?, tasks))
    }

    fn broken(&self, problem: String) -> ClientError {
        broken(&self.target, problem)
    }
}

impl Watch {
    /// The next overview. May be given up and called again: what was read so far is kept.
    pub(crate) async fn next(&mut self) -> Result<Overview, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let read = serde_json::from_slice(&line);
                let read = read.map_err(|error| self.broken(format!("is of another version: {error}")))?;
                return meant(read, &self.target);
            }
            match self.body.frame().await {
                None | Some(Err(_)) => return Err(ClientError::Ended("`rollora local` has ended".to_owned())),
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
            if self.buffer.len() > MAX_ANSWER {
                return Err(self.broken("said more than can be shown".to_owned()));
            }
        }
    }

    fn broken(&self, problem: String) -> ClientError {
        broken(&self.target, problem)
    }
}

/// The overview, where it is of the Rollout that was asked for.
fn meant(overview: Overview, target: &Target) -> Result<Overview, ClientError> {
    let runs = &overview.rollout.metadata.name;
    match &target.rollout {
        Some(asked) if asked != runs => {
            let (runs, asked) = (runs.clone(), asked.clone());
            Err(ClientError::OtherRollout { state: target.state.clone(), runs, asked })
        }
        _ => Ok(overview),
    }
}

fn broken(target: &Target, problem: String) -> ClientError {
    ClientError::Broken { state: target.state.clone(), problem }
}
