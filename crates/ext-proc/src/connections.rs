//! Accepts connections and serves them over HTTP/2, with or without TLS.

use crate::grpc::Slices;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::{
    Ping, PingPong, RecvStream,
    server::{Builder, SendResponse},
};
use http::Request;
use std::{io, num::NonZeroUsize, pin::pin, thread, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Many clients that cancel at the same time must not close the connection for all others; h2's default closes it after
/// 20 resets.
const MAX_RESET_STREAMS: usize = 10_000;
/// Concurrent streams per connection. Envoy opens one connection per worker thread.
const MAX_CONCURRENT_STREAMS: u32 = 10_000;
/// Flow-control window of a stream, as Envoy recommends for body chunks.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window of a connection: large enough that streams with slow servers do not block the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Twice the 60 KiB of headers that Envoy forwards.
const MAX_HEADER_LIST_SIZE: u32 = 128 * 1024;
/// Interval of HTTP/2 pings, and the time allowed for the acknowledgment. They detect peers that vanish without
/// closing the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time allowed for each of the TLS and HTTP/2 handshakes.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Accepted connections that may wait for their worker.
const ACCEPT_QUEUE: usize = 64;
/// Delay after `accept` failed for lack of system resources.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Handler of the calls of a connection.
pub(crate) trait Handler: Clone + Send + 'static {
    /// Handles one call, from its request to its trailers.
    fn handle(self, request: Request<RecvStream>, respond: SendResponse<Slices>) -> impl Future<Output = ()> + Send;

    /// Returns the TLS acceptor for new connections; `None` for connections without TLS.
    fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        None
    }
}

/// Returns the number of CPUs available to this process.
pub(crate) fn worker_threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Serves until `stop`, then accepts nothing new and lets open calls end within `grace`. Returns how many connections
/// were aborted.
///
/// Connections are served by `threads` workers, each with its own single-threaded runtime: all work of a connection
/// stays on one thread. With a shared runtime, handing work over between threads takes a third of the time of a small
/// request.
pub(crate) async fn serve<A>(
    listener: TcpListener,
    threads: NonZeroUsize,
    handler: A,
    stop: CancellationToken,
    grace: Duration,
) -> usize
where
    A: Handler,
{
    let abort = CancellationToken::new();
    // Aborts the connections also if this future is dropped early.
    let _abort_on_drop = abort.clone().drop_guard();
    let mut workers = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..threads.get() {
        let (queue, accepted) = mpsc::channel(ACCEPT_QUEUE);
        queues.push(queue);
        let worker = ConnectionWorker { accepted, handler: handler.clone(), stop: stop.clone(), abort: abort.clone() };
        workers.spawn_blocking(move || worker.run());
    }
    let mut round_robin = queues.iter().cycle();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                // If the worker's queue is full, waits: further connections stay in the system's backlog.
                Ok(stream) => if let Some(queue) = round_robin.next() {
                    // Sending cannot fail: workers outlive this loop.
                    drop(queue.send(stream).await);
                },
                Err(error) => back_off(&error).await,
            },
        }
    }
    drop(listener);
    drop(queues);
    let mut aborted = 0;
    let mut deadline = pin!(sleep(grace));
    loop {
        tokio::select! {
            // Joins first, so that without a grace period no connection that has ended is aborted.
            biased;
            ended = workers.join_next() => match ended {
                Some(ended) => aborted += ended.unwrap_or_default(),
                None => return aborted,
            },
            () = &mut deadline, if !abort.is_cancelled() => abort.cancel(),
        }
    }
}

/// One thread and the connections that it serves.
struct ConnectionWorker<A> {
    accepted: mpsc::Receiver<std::net::TcpStream>,
    handler: A,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl<A: Handler> ConnectionWorker<A> {
    /// Serves until the queue is closed and all connections have ended or are aborted. Returns how many were aborted.
    fn run(self) -> usize {
        match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => {
                tracing::error!(%error, "cannot start the runtime of a connection worker");
                0
            }
        }
    }

    async fn serve(mut self) -> usize {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.accepted.recv() => match accepted {
                    Some(stream) => {
                        let connection = accept_connection(stream, self.handler.clone(), self.stop.clone());
                        connections.spawn(connection);
                    }
                    None => break,
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
        let all_ended = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = all_ended => 0,
            () = self.abort.cancelled() => connections.len(),
        }
    }
}

/// Waits after errors that mean that the system has no resources; errors of a single connection need no delay.
async fn back_off(error: &io::Error) {
    let client_errors = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !client_errors.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(ACCEPT_BACKOFF).await;
    }
}

async fn accept_connection<A: Handler>(stream: std::net::TcpStream, handler: A, stop: CancellationToken) {
    // Fails only if the client has disconnected already.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) else { return };
    let Some(acceptor) = handler.tls_acceptor() else { return serve_connection(stream, handler, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_connection(stream, handler, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake did not finish within {HANDSHAKE_TIMEOUT:?}"),
    }
}

async fn serve_connection<A, I>(stream: I, handler: A, stop: CancellationToken)
where
    A: Handler,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http2 = Builder::new();
    http2
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_RESET_STREAMS))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST_SIZE);
    let mut connection = match timeout(HANDSHAKE_TIMEOUT, http2.handshake(stream)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "HTTP/2 handshake failed"),
        Err(_) => return tracing::debug!("HTTP/2 handshake did not finish within {HANDSHAKE_TIMEOUT:?}"),
    };
    // All calls of a connection are polled here, so that replies of several calls are written together.
    let mut calls = FuturesUnordered::new();
    let mut keepalive = pin!(keepalive_failed(connection.ping_pong()));
    let mut stop_requested = pin!(stop.cancelled());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => calls.push(handler.clone().handle(request, respond)),
                Some(Err(error)) => return tracing::debug!(%error, "connection failed"),
                None => return,
            },
            Some(()) = calls.next() => {}
            () = &mut stop_requested, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut keepalive => return tracing::debug!("no acknowledgment of a ping within {KEEPALIVE_TIMEOUT:?}"),
        }
    }
}

/// Completes when the peer does not acknowledge a ping in time.
async fn keepalive_failed(pings: Option<PingPong>) {
    // Always present, because nothing has taken the handle before.
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(KEEPALIVE_INTERVAL).await;
        if timeout(KEEPALIVE_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}
