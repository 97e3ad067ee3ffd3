//! Connections to one server. A bounded number is kept open between requests, for a shorter time than the server keeps
//! them, so that a request is rarely written to a connection that the server is closing.

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

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of idle connections to one server.
const MAX_IDLE: usize = 512;
/// Number of sweeps, one per second, that an idle connection survives. vLLM closes idle connections after 5 s.
const MAX_IDLE_SWEEPS: u32 = 3;

/// Sending side of a connection, for one request at a time.
pub(super) type ServerConnection = SendRequest<BodyChunks>;

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

    /// Takes the idle connection that was used last.
    pub(super) fn take(&self) -> Option<ServerConnection> {
        let mut idle = self.lock_idle();
        let ready = idle.connections.iter().rposition(|(connection, _)| connection.is_ready())?;
        Some(idle.connections.remove(ready).0)
    }

    pub(super) async fn connect(&self) -> io::Result<ServerConnection> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        self.tasks.spawn(async move {
            // The caller that waits for a response on this connection gets the error too.
            drop(connection.await);
        });
        Ok(sender)
    }

    /// Returns a connection whose response was read to its end.
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

    /// Drops connections that were closed, or that were idle for some seconds. Must be called once per second.
    pub(super) fn sweep(&self) {
        let mut idle = self.lock_idle();
        idle.sweep_count = idle.sweep_count.wrapping_add(1);
        let sweep = idle.sweep_count;
        idle.connections
            .retain(|(connection, since)| !connection.is_closed() && sweep.wrapping_sub(*since) <= MAX_IDLE_SWEEPS);
    }

    /// Drops all idle connections to the server.
    pub(super) fn clear(&self) {
        self.lock_idle().connections.clear();
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, IdleConnections> {
        // No code under this lock can leave the list half-changed, so a poisoned lock is safe to use.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
