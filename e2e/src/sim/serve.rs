//! Connections: accepted, served with keep-alive, cut or let finish when the server ends.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer;
use super::server::Server;

/// How long a server whose engine has failed goes on sending its last answers.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long to wait when no connection can be accepted (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves until the server ends by itself; dropping the future cuts everything.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = server.cut.cancelled() => return,
            () = server.engine_dead.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(Arc::clone(&server), stream)); }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = server.cut.cancelled() => {}
        _out_of_time = timeout(LAST_WORDS, finished) => {}
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream) {
    // Small answers must not wait for the acknowledgement of the one before; without it they are slower, not wrong.
    let _slower_without = stream.set_nodelay(true);
    let service = service_fn(|request| answer::answer(Arc::clone(&server), request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = server.engine_dead.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A client that went away is no news.
    drop(ended);
}
