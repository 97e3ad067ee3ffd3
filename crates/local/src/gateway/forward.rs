//! Sends a request to a server. Another server is tried only if no byte of the request was written, or if the
//! connection was refused.

use super::{
    balancer::{NoServer, ServerRequirement},
    body::BodyChunks,
    pool::ServerConnection,
    servers::{GatewayServer, GatewayServers, InFlightGuard},
};
use http::{HeaderValue, Request, Response, header::HOST};
use hyper::body::Incoming;
use std::sync::Arc;

/// Response of a server whose head has arrived.
#[derive(Debug)]
pub(super) struct ServerResponse {
    pub(super) response: Response<Incoming>,
    pub(super) connection: ServerConnection,
    pub(super) guard: InFlightGuard,
}

/// Why no server has responded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("no server")]
    NoServer(NoServer),
    /// The server may have begun to process the request, so it must not be sent again.
    #[error("the server {server} closed the connection before it responded")]
    Disconnected { server: String, source: hyper::Error },
}

/// How an attempt on one server failed.
enum SendError {
    /// No byte of the request was written.
    Unsent(Box<Request<BodyChunks>>),
    /// Part of the request may have been written.
    MaybeSent(hyper::Error),
}

/// Sends `request` to a server that fulfills `requirement`.
pub(super) async fn forward(
    servers: &GatewayServers,
    requirement: ServerRequirement<'_>,
    mut request: Request<BodyChunks>,
) -> Result<ServerResponse, ForwardError> {
    let mut tried: Vec<Arc<GatewayServer>> = Vec::new();
    loop {
        let guard = servers.acquire(requirement, &tried).map_err(ForwardError::NoServer)?;
        match send(&guard.server, request).await {
            Ok((response, connection)) => return Ok(ServerResponse { response, connection, guard }),
            Err(SendError::Unsent(unsent)) => {
                guard.server.mark_suspect();
                request = *unsent;
                tried.push(Arc::clone(&guard.server));
            }
            Err(SendError::MaybeSent(source)) => {
                guard.server.mark_suspect();
                return Err(ForwardError::Disconnected { server: guard.server.name.clone(), source });
            }
        }
    }
}

/// Tries one server: first its idle connections, each of which the server may have closed meanwhile, then a new one.
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
            result => return result,
        }
    }
    match server.pool.connect().await {
        Ok(connection) => send_on(connection, request).await,
        Err(error) => {
            tracing::debug!(server = server.name, %error, "connection failed");
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
