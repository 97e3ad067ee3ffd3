//! Accepts the connections of Envoys and serves them over HTTP/2, with TLS or without.

use crate::service::Methods;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{convert::Infallible, io, num::NonZeroUsize, pin::pin, thread, time::Duration};
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
/// How long a client may take to begin with TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait when the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers calls.
pub(crate) trait Answer: Clone + Send + 'static {
    /// Answers one.
    fn answer(self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;

    /// What connections are accepted with; none where they are not encrypted.
    fn tls(&self) -> Option<TlsAcceptor> {
        None
    }
}

impl Answer for Methods {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        Self::answer(self, request).await
    }

    fn tls(&self) -> Option<TlsAcceptor> {
        Self::tls(self)
    }
}

/// As many threads as there are processors for this process.
pub(crate) fn a_thread_a_processor() -> NonZeroUsize {
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
    A: Answer,
{
    let cut = CancellationToken::new();
    // Also when this is not waited for to its end.
    let _cut_when_dropped = cut.clone().drop_guard();
    let mut workers = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..threads.get() {
        let (queue, accepted) = mpsc::unbounded_channel();
        queues.push(queue);
        let worker = Worker { accepted, answer: answer.clone(), stop: stop.clone(), cut: cut.clone() };
        workers.spawn_blocking(move || worker.run());
    }
    let mut next = queues.iter().cycle();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                // A worker ends only after this.
                Ok(stream) => drop(next.next().map(|queue| queue.send(stream))),
                Err(error) => pause(&error).await,
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
struct Worker<A> {
    accepted: mpsc::UnboundedReceiver<std::net::TcpStream>,
    answer: A,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl<A: Answer> Worker<A> {
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
                    Some(stream) => drop(connections.spawn(connection(stream, self.answer.clone(), self.stop.clone()))),
                    None => break,
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
        let all_ended = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = all_ended => 0,
            () = self.cut.cancelled() => connections.len(),
        }
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

async fn connection<A: Answer>(stream: std::net::TcpStream, answer: A, stop: CancellationToken) {
    // Where it fails, whoever it was is gone already.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) else { return };
    let Some(acceptor) = answer.tls() else { return serve_one(stream, answer, stop).await };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_one(stream, answer, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
        Err(_) => tracing::debug!("no TLS within {HANDSHAKE:?}"),
    }
}

async fn serve_one<A, I>(stream: I, answer: A, stop: CancellationToken)
where
    A: Answer,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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
