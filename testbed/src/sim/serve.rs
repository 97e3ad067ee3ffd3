//! Accepts connections, serves them with keep-alive, and closes them when the server ends.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::handler;
use super::server::SimulatedServer;

/// How long a server outlives its engine: long enough to answer all requests in flight, and some health checks. vLLM
/// was measured to take 130 ms.
const SHUTDOWN_DELAY: Duration = Duration::from_millis(130);

/// Delay before the next attempt when a connection cannot be accepted (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves until the server crashes; dropping the future closes all connections.
pub(super) async fn serve(server: Arc<SimulatedServer>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut end = pin!(wait_end(&server));
    loop {
        tokio::select! {
            biased;
            () = end.as_mut() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_connection(Arc::clone(&server), stream)); }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn wait_end(server: &SimulatedServer) {
    tokio::select! {
        () = server.killed.cancelled() => {}
        () = async {
            server.engine_dead.cancelled().await;
            sleep(SHUTDOWN_DELAY).await;
        } => {}
    }
}

async fn serve_connection(server: Arc<SimulatedServer>, stream: TcpStream) {
    // Without TCP_NODELAY small responses wait for the acknowledgement of earlier ones, which is only slower.
    let _nodelay = stream.set_nodelay(true);
    let service = service_fn(|request| handler::handle(Arc::clone(&server), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Errors of a connection are the client's concern; a disconnect is not reported.
    let _disconnected = connection.await;
}
