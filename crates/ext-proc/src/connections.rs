//! Accepts the connections of Envoys and serves them over HTTP/2 without TLS.

use crate::service::Methods;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{convert::Infallible, io, pin::pin, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

/// Clients that give up together must not end the connection of everybody else: with h2's default more than 20 do.
const RESETS: usize = 10_000;
/// Requests at the same time on one connection. An Envoy has one for each of its threads.
const STREAMS: u32 = 10_000;
/// What one stream may send ahead: Envoy's advice for a piece of a body.
const STREAM_WINDOW: u32 = 64 * 1024;
/// What all streams of a connection may send ahead: so many that some whose servers read slowly do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Envoy passes on headers of 60 KiB.
const HEADERS: u32 = 128 * 1024;
/// An Envoy that has vanished without a word is noticed in so long.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long to wait when the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers calls.
pub(crate) trait Answer: Clone + Send + 'static {
    /// Answers one.
    fn answer(self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

impl Answer for Methods {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        Self::answer(self, request).await
    }
}

/// Serves until `stop`; then takes nothing new, and lets what has begun end within `grace`. Returns how many
/// connections were cut.
pub(crate) async fn serve<A>(listener: TcpListener, answer: A, stop: CancellationToken, grace: Duration) -> usize
where
    A: Answer,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, answer.clone(), stop.clone()));
                }
                Err(error) => pause(&error).await,
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    match timeout(grace, all_ended).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    }
}

/// Errors of one connection are that client's; others mean that the system has no more to give for now.
async fn pause(error: &io::Error) {
    let of_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !of_client.contains(&error.kind()) {
        tracing::warn!(%error, "no connection can be accepted");
        sleep(ACCEPT_PAUSE).await;
    }
}

async fn connection<A: Answer>(stream: TcpStream, answer: A, stop: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        // Whoever it was is gone already.
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request).await) }
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(KEEP_ALIVE);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broken");
    }
}
