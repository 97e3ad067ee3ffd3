//! Accepts the connections of Envoys and serves them over HTTP/2, with TLS or without.

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

/// Clients that give up together must not end the connection of everybody else: with h2's default more than 20 do.
const MAX_RESET_STREAMS: usize = 10_000;
/// Requests at the same time on one connection. An Envoy has one for each of its threads.
const MAX_CONCURRENT_STREAMS: u32 = 10_000;
/// What one stream may send ahead: Envoy's advice for a piece of a body.
const STREAM_WINDOW: u32 = 64 * 1024;
/// What all streams of a connection may send ahead: so many that some whose servers read slowly do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Envoy passes on headers of 60 KiB.
const MAX_HEADER_LIST_SIZE: u32 = 128 * 1024;
/// How often an Envoy is asked whether it is there, and how long it may take to answer: one that has vanished without a
/// word is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to begin, with TLS and with HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that were accepted and wait for their thread.
const ACCEPT_QUEUE: usize = 64;
/// How long to wait when the system gives no more connections.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What answers calls.
pub(crate) trait Handler: Clone + Send + 'static {
    /// Answers one.
    fn handle(self, request: Request<RecvStream>, answer: SendResponse<Slices>) -> impl Future<Output = ()> + Send;

    /// What connections are accepted with; none where they are not encrypted.
    fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        None
    }
}

/// As many threads as there are processors for this process.
pub(crate) fn worker_threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Serves until `stop`; then takes nothing new, and lets what has begun end within `grace`. Returns how many
/// connections were cut.
///
/// The connections are served by `threads` threads, each with a runtime of its own: what belongs to a connection stays on
/// one of them. Where threads share the work, a third of the time of a small request is spent on handing it over.
pub(crate) async fn serve<A>(
    listener: TcpListener,
    threads: NonZeroUsize,
    answer: A,
    stop: CancellationToken,
    grace: Duration,
) -> usize
where
    A: Handler,
{
    let cut = CancellationToken::new();
    // Also when this is not waited for to its end.
    let _cut_when_dropped = cut.clone().drop_guard();
    let mut workers = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..threads.get() {
        let (queue, accepted) = mpsc::channel(ACCEPT_QUEUE);
        queues.push(queue);
        let worker = ConnectionWorker { accepted, handler: answer.clone(), stop: stop.clone(), abort: cut.clone() };
        workers.spawn_blocking(move || worker.run());
    }
    let mut next = queues.iter().cycle();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                // Waits for a thread that is late, so that the system keeps whoever comes meanwhile.
                Ok(stream) => if let Some(queue) = next.next() {
                    // A worker ends only after this.
                    drop(queue.send(stream).await);
                },
                Err(error) => back_off(&error).await,
            },
        }
    }
    drop(listener);
    drop(queues);
    let mut were_cut = 0;
    let mut too_late = pin!(sleep(grace));
    loop {
        tokio::select! {
            // First, so that without any grace nothing is cut that has ended.
            biased;
            ended = workers.join_next() => match ended {
                Some(ended) => were_cut += ended.unwrap_or_default(),
                None => return were_cut,
            },
            () = &mut too_late, if !cut.is_cancelled() => cut.cancel(),
        }
    }
}

/// One thread, and what it serves.
struct ConnectionWorker<A> {
    accepted: mpsc::Receiver<std::net::TcpStream>,
    handler: A,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl<A: Handler> ConnectionWorker<A> {
    /// Serves until nothing more is accepted and everything has ended, or is cut: how many connections then.
    fn run(self) -> usize {
        match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => {
                tracing::error!(%error, "a thread cannot serve");
                0
            }
        }
    }

    async fn serve(mut self) -> usize {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.accepted.recv() => match accepted {
                    Some(stream) => drop(connections.spawn(accept_connection(stream, self.handler.clone(), self.stop.clone()))),
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

/// Errors of one connection are that client's; others mean that the system has no more to give for now.
async fn back_off(error: &io::Error) {
    let of_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !of_client.contains(&error.kind()) {
        tracing::warn!(%error, "no connection can be accepted");
        sleep(ACCEPT_BACKOFF).await;
    }
}

async fn accept_connection<A: Handler>(stream: std::net::TcpStream, answer: A, stop: CancellationToken) {
    // Where it fails, whoever it was is gone already.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) else { return };
    let Some(acceptor) = answer.tls_acceptor() else { return serve_connection(stream, answer, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_connection(stream, answer, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
        Err(_) => tracing::debug!("no TLS within {HANDSHAKE_TIMEOUT:?}"),
    }
}

async fn serve_connection<A, I>(stream: I, answer: A, stop: CancellationToken)
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
        Ok(Err(error)) => return tracing::debug!(%error, "no HTTP/2"),
        Err(_) => return tracing::debug!("no HTTP/2 within {HANDSHAKE_TIMEOUT:?}"),
    };
    // All of a connection's calls are polled here, so that what several of them say is written together.
    let mut calls = FuturesUnordered::new();
    let mut vanished = pin!(keepalive_failed(connection.ping_pong()));
    let mut stopped = pin!(stop.cancelled());
    let mut ends = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => calls.push(answer.clone().handle(request, respond)),
                Some(Err(error)) => return tracing::debug!(%error, "connection broken"),
                None => return,
            },
            Some(()) = calls.next() => {}
            () = &mut stopped, if !ends => {
                ends = true;
                connection.graceful_shutdown();
            }
            () = &mut vanished => return tracing::debug!("no answer to a ping within {KEEPALIVE_TIMEOUT:?}"),
        }
    }
}

/// Ends when whoever is at the other end does not answer any more.
async fn keepalive_failed(pings: Option<PingPong>) {
    // There is one, as nobody has asked for it before.
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(KEEPALIVE_INTERVAL).await;
        if timeout(KEEPALIVE_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}
