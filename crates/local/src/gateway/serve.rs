//! Accepts connections of clients and answers what comes on them.

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

/// Connections at the same time; more wait until one ends.
const MAX_CONNECTIONS: usize = 10_000;
/// How long a client may take to send the head of a request, and a connection may be without one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait when the system gives no more connections.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Serves until `stop`; then takes no new connection and no new request, and lets answers end within `grace`.
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
        tracing::warn!(cut = connections.len(), "answers did not end in time");
    }
}

/// Errors of one connection are that client's; others mean that the system has no more to give for now.
async fn back_off(error: &io::Error) {
    let of_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !of_client.contains(&error.kind()) {
        tracing::warn!(%error, "no connection can be accepted");
        sleep(ACCEPT_BACKOFF).await;
    }
}

async fn serve_connection(stream: TcpStream, gateway: Arc<Gateway>, stop: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        // The client is gone already.
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, Infallible>(gateway.handle(request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of a client broken");
    }
}
