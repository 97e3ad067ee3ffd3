//! Sends one request to a server, and to another one only if no byte of it was written, or the connection was refused.

use super::{
    balancer::{NoServer, ServerRequirement},
    body::BodyChunks,
    pool::ServerConnection,
    servers::{GatewayServer, GatewayServers, InFlightGuard},
};
use http::{HeaderValue, Request, Response, header::HOST};
use hyper::body::Incoming;
use std::sync::Arc;

/// A server's answer has begun.
#[derive(Debug)]
pub(super) struct ServerResponse {
    pub(super) response: Response<Incoming>,
    pub(super) connection: ServerConnection,
    pub(super) guard: InFlightGuard,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// No server could be chosen.
    #[error("no server")]
    NoServer(NoServer),
    /// The server went away after it may have begun to work on the request: nobody may send it again.
    #[error("the server {server} closed the connection before it answered")]
    Disconnected {
        /// The server.
        server: String,
        /// What the connection said.
        source: hyper::Error,
    },
}

/// How one try at one server failed.
enum SendError {
    /// No byte was written.
    Unsent(Box<Request<BodyChunks>>),
    /// Something was.
    MaybeSent(hyper::Error),
}

/// Sends `request` to a server that fits `need`.
pub(super) async fn forward(
    servers: &GatewayServers,
    need: ServerRequirement<'_>,
    mut request: Request<BodyChunks>,
) -> Result<ServerResponse, ForwardError> {
    let mut tried: Vec<Arc<GatewayServer>> = Vec::new();
    loop {
        let lease = servers.acquire(need, &tried).map_err(ForwardError::NoServer)?;
        match send(&lease.server, request).await {
            Ok((response, connection)) => return Ok(ServerResponse { response, connection, guard: lease }),
            Err(SendError::Unsent(unsent)) => {
                lease.server.mark_suspect();
                request = *unsent;
                tried.push(Arc::clone(&lease.server));
            }
            Err(SendError::MaybeSent(source)) => {
                lease.server.mark_suspect();
                return Err(ForwardError::Disconnected { server: lease.server.name.clone(), source });
            }
        }
    }
}

/// Tries one server: connections that wait for a request first, since each of them may have been closed meanwhile, then
/// a new one.
async fn send(
    server: &GatewayServer,
    mut request: Request<BodyChunks>,
) -> Result<(Response<Incoming>, ServerConnection), SendError> {
    if !request.headers().contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&server.name)
    {
        request.headers_mut().insert(HOST, host);
    }
    while let Some(connection) = server.pool.take() {
        match send_on(connection, request).await {
            Err(SendError::Unsent(unsent)) => request = *unsent,
            ended => return ended,
        }
    }
    match server.pool.connect().await {
        Ok(connection) => send_on(connection, request).await,
        Err(error) => {
            tracing::debug!(server = server.name, %error, "not connected");
            Err(SendError::Unsent(Box::new(request)))
        }
    }
}

async fn send_on(
    mut connection: ServerConnection,
    request: Request<BodyChunks>,
) -> Result<(Response<Incoming>, ServerConnection), SendError> {
    match connection.try_send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(mut error) => Err(match error.take_message() {
            Some(unsent) => SendError::Unsent(Box::new(unsent)),
            None => SendError::MaybeSent(error.into_error()),
        }),
    }
}
