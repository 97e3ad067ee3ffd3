//! Talks to the `rollora local` of a state folder, over its Unix socket.

#[cfg(test)]
mod tests;

use crate::command::Target;
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

/// One Rollout of one `rollora local`.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
}

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody is there.
    #[error(
        "no `rollora local` runs on the state folder {0}: start it, or name the folder of the one you mean with --state"
    )]
    NotRunning(PathBuf),
    /// Somebody else's.
    #[error("the socket {0} belongs to another user: ask as the one who started `rollora local`")]
    Forbidden(PathBuf),
    /// It is there, but did not answer as it should.
    #[error("`rollora local` of the state folder {state} {problem}")]
    Broken {
        /// The folder.
        state: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// It runs another Rollout.
    #[error(
        "`rollora local` of the state folder {state} runs the Rollout {runs}, not {asked}: leave the name out, or name \
         another folder with --state"
    )]
    OtherRollout {
        /// The folder.
        state: PathBuf,
        /// The Rollout that it runs.
        runs: String,
        /// The one that was asked for.
        asked: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
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
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
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
    /// The next overview; none when `rollora local` has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Overview>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let read = serde_json::from_slice(&line);
                let read = read.map_err(|error| self.broken(format!("is of another version: {error}")))?;
                return meant(read, &self.target).map(Some);
            }
            match self.body.frame().await {
                None | Some(Err(_)) => return Ok(None),
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
