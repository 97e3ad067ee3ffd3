//! Sends one request to a server, and to another one only if no byte of it was written, or the connection was refused.

use super::{
    body::Chunks,
    choose::{Need, NoServer},
    pool::Connection,
    servers::{Lease, Server, Servers},
};
use http::{HeaderValue, Request, Response, header::HOST};
use hyper::body::Incoming;
use std::sync::Arc;

/// A server's answer has begun.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) lease: Lease,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// No server could be chosen.
    #[error("no server")]
    NoServer(NoServer),
    /// The server went away after it may have begun to work on the request: nobody may send it again.
    #[error("the server {server} closed the connection before it answered")]
    Broken {
        /// The server.
        server: String,
        /// What the connection said.
        source: hyper::Error,
    },
}

/// How one try at one server failed.
enum Try {
    /// No byte was written.
    Unsent(Box<Request<Chunks>>),
    /// Something was.
    Sent(hyper::Error),
}

/// Sends `request` to a server that fits `need`.
pub(super) async fn forward(
    servers: &Servers,
    need: Need<'_>,
    mut request: Request<Chunks>,
) -> Result<Answered, ForwardError> {
    let mut tried: Vec<Arc<Server>> = Vec::new();
    loop {
        let lease = servers.lease(need, &tried).map_err(ForwardError::NoServer)?;
        match send(&lease.server, request).await {
            Ok((response, connection)) => return Ok(Answered { response, connection, lease }),
            Err(Try::Unsent(unsent)) => {
                lease.server.suspect();
                request = *unsent;
                tried.push(Arc::clone(&lease.server));
            }
            Err(Try::Sent(source)) => {
                lease.server.suspect();
                return Err(ForwardError::Broken { server: lease.server.name.clone(), source });
            }
        }
    }
}

/// Tries one server: connections that wait for a request first, since each of them may have been closed meanwhile, then
/// a new one.
async fn send(server: &Server, mut request: Request<Chunks>) -> Result<(Response<Incoming>, Connection), Try> {
    if !request.headers().contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&server.name)
    {
        request.headers_mut().insert(HOST, host);
    }
    while let Some(connection) = server.pool.take() {
        match send_on(connection, request).await {
            Err(Try::Unsent(unsent)) => request = *unsent,
            ended => return ended,
        }
    }
    match server.pool.connect().await {
        Ok(connection) => send_on(connection, request).await,
        Err(error) => {
            tracing::debug!(server = server.name, %error, "not connected");
            Err(Try::Unsent(Box::new(request)))
        }
    }
}

async fn send_on(
    mut connection: Connection,
    request: Request<Chunks>,
) -> Result<(Response<Incoming>, Connection), Try> {
    match connection.try_send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(mut error) => Err(match error.take_message() {
            Some(unsent) => Try::Unsent(Box::new(unsent)),
            None => Try::Sent(error.into_error()),
        }),
    }
}
