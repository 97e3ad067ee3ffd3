//! Connections to one server: kept open between requests, a bounded number of them, and not for as long as the
//! server keeps them, so that a request is rarely written to a connection that the server is closing.

use super::body::BodyChunks;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::TaskTracker;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections without a request that are kept for one server.
const MAX_IDLE: usize = 512;
/// Sweeps, one a second, that a connection survives without a request. vLLM closes idle connections after 5 s.
const MAX_IDLE_SWEEPS: u32 = 3;

/// One connection on which a request can be sent.
pub(super) type ServerConnection = SendRequest<BodyChunks>;

/// The connections to one server.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    host: String,
    port: u16,
    idle: Mutex<IdleConnections>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct IdleConnections {
    connections: Vec<(ServerConnection, u32)>,
    sweep_count: u32,
}

impl ConnectionPool {
    pub(super) fn new(host: String, port: u16, tasks: TaskTracker) -> Self {
        Self { host, port, idle: Mutex::default(), tasks }
    }

    /// The connection that was used last, of those that wait for a request.
    pub(super) fn take(&self) -> Option<ServerConnection> {
        let mut idle = self.lock_idle();
        let ready = idle.connections.iter().rposition(|(connection, _)| connection.is_ready())?;
        Some(idle.connections.remove(ready).0)
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> io::Result<ServerConnection> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        self.tasks.spawn(async move {
            // Whoever waits for an answer on this connection is told of its end; there is nobody else to tell.
            drop(connection.await);
        });
        Ok(sender)
    }

    /// Takes back a connection whose answer was read to its end.
    pub(super) fn put(&self, connection: ServerConnection) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.lock_idle();
        if idle.connections.len() < MAX_IDLE {
            let sweep = idle.sweep_count;
            idle.connections.push((connection, sweep));
        }
    }

    /// Drops connections that were closed, or that had no request for some seconds. To be called every second.
    pub(super) fn sweep(&self) {
        let mut idle = self.lock_idle();
        idle.sweep_count = idle.sweep_count.wrapping_add(1);
        let sweep = idle.sweep_count;
        idle.connections
            .retain(|(connection, since)| !connection.is_closed() && sweep.wrapping_sub(*since) <= MAX_IDLE_SWEEPS);
    }

    /// Drops all connections without a request.
    pub(super) fn clear(&self) {
        self.lock_idle().connections.clear();
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, IdleConnections> {
        // Nothing that is done under the lock can leave the list half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
