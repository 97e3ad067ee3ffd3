//! Accepts client connections and serves the requests on them.

use super::Gateway;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Maximum number of open client connections; further clients wait until one is closed.
const MAX_CONNECTIONS: usize = 10_000;
/// Maximum time for the head of a request to arrive, and for a connection to be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Delay before the next attempt after the system failed to accept a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Serves until `stop` is canceled. Then it accepts no new connection and no new request, and waits up to `grace` for
/// responses to end.
pub(crate) async fn serve(listener: TcpListener, gateway: Arc<Gateway>, stop: CancellationToken, grace: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&gateway), stop.clone()));
                }
                Err(error) => back_off(&error).await,
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(grace, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "responses cut off: they did not end in time");
    }
}

/// Waits after an error of the system, such as too many open files. Errors of a single connection need no wait.
async fn back_off(error: &io::Error) {
    let of_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !of_client.contains(&error.kind()) {
        tracing::warn!(%error, "connection cannot be accepted");
        sleep(ACCEPT_BACKOFF).await;
    }
}

async fn serve_connection(stream: TcpStream, gateway: Arc<Gateway>, stop: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        // The client has disconnected already.
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, Infallible>(gateway.handle(request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "client connection failed");
    }
}
