//! The servers behind the gateway: their routing state, load and connections.
//!
//! A server that broke a connection is suspect ([`GatewayServer::mark_suspect`]): it gets no requests, even before its
//! sidecar has noticed, until the sidecar has probed it after that.

use super::{
    balancer::{NoServer, RoutingTable, ServerRequirement, ServerRoutingState},
    pool::ConnectionPool,
};
use arc_swap::ArcSwap;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

/// All servers, in the order of the command line.
#[derive(Debug)]
pub(crate) struct GatewayServers {
    all: Vec<Arc<GatewayServer>>,
    table: ArcSwap<RoutingTable>,
    round_robin: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct GatewayServer {
    /// Host and port, as in `127.0.0.1:8000`.
    pub(crate) name: String,
    pub(super) pool: ConnectionPool,
    in_flight: AtomicUsize,
    suspect: AtomicBool,
    /// Whether to notify `drained` when the last request has ended.
    notify_drained: AtomicBool,
    /// Notified when the last request has ended, if `notify_drained` is set.
    drained: Arc<Notify>,
    /// Notified when the server becomes suspect, so that its sidecar probes it.
    suspected: Arc<Notify>,
}

/// Counts one request in flight on a server, until dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    pub(super) server: Arc<GatewayServer>,
}

impl GatewayServers {
    pub(crate) fn new(all: Vec<Arc<GatewayServer>>) -> Self {
        Self { all, table: ArcSwap::default(), round_robin: AtomicUsize::new(0) }
    }

    pub(crate) fn all(&self) -> &[Arc<GatewayServer>] {
        &self.all
    }

    /// Replaces the routing states; there is one entry per server, in their order.
    pub(crate) fn update_routing(&self, states: &[ServerRoutingState]) {
        self.table.store(Arc::new(RoutingTable::new(states)));
    }

    /// Number of servers that requests may go to.
    pub(crate) fn ready_count(&self) -> usize {
        self.table.load().ready_count()
    }

    /// Chooses a server that is not in `tried`, and counts a request in flight there.
    pub(crate) fn acquire(
        &self,
        requirement: ServerRequirement<'_>,
        tried: &[Arc<GatewayServer>],
    ) -> Result<InFlightGuard, NoServer> {
        let round_robin = self.round_robin.fetch_add(1, Relaxed);
        let index = self.table.load().choose(requirement, round_robin, |index| {
            let server = self.all.get(index)?;
            let excluded = server.suspect.load(Relaxed) || tried.iter().any(|tried| Arc::ptr_eq(tried, server));
            (!excluded).then(|| server.in_flight.load(Relaxed))
        })?;
        let server = self.all.get(index).ok_or(NoServer::NotReady)?;
        server.in_flight.fetch_add(1, Relaxed);
        Ok(InFlightGuard { server: Arc::clone(server) })
    }

    /// Drops idle connections of all servers. Must be called once per second.
    pub(crate) fn sweep(&self) {
        self.all.iter().for_each(|server| server.pool.sweep());
    }
}

impl GatewayServer {
    /// Creates a server at `host` and `port`; `tasks` runs its connections.
    pub(crate) fn new(
        name: String,
        host: &str,
        port: u16,
        tasks: TaskTracker,
        drained: Arc<Notify>,
        suspected: Arc<Notify>,
    ) -> Self {
        let pool = ConnectionPool::new(host.to_owned(), port, tasks);
        Self {
            name,
            pool,
            in_flight: AtomicUsize::new(0),
            suspect: AtomicBool::new(false),
            notify_drained: AtomicBool::new(false),
            drained,
            suspected,
        }
    }

    /// Number of requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Marks a server that broke a connection: it gets no requests until [`Self::clear_suspicion`].
    pub(crate) fn mark_suspect(&self) {
        if !self.suspect.swap(true, Relaxed) {
            tracing::info!(server = self.name, "connection failed: no requests go to the server until it is probed");
        }
        self.pool.clear();
        self.suspected.notify_one();
    }

    /// Whether the server gets no requests until its sidecar has probed it.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Lets requests go to the server again, after its sidecar has probed it.
    pub(crate) fn clear_suspicion(&self) {
        self.suspect.store(false, Relaxed);
    }

    /// Sets whether `drained` is notified when the last request has ended.
    pub(crate) fn set_notify_drained(&self, notify: bool) {
        self.notify_drained.store(notify, Relaxed);
    }
}

#[cfg(test)]
impl GatewayServers {
    /// Counts a request in flight on a server until the guard is dropped.
    pub(crate) fn occupy(&self, index: usize) -> InFlightGuard {
        let server = Arc::clone(&self.all[index]);
        server.in_flight.fetch_add(1, Relaxed);
        InFlightGuard { server }
    }
}

#[cfg(test)]
impl InFlightGuard {
    pub(crate) fn server(&self) -> &GatewayServer {
        &self.server
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let before = self.server.in_flight.fetch_sub(1, Relaxed);
        if before == 1 && self.server.notify_drained.load(Relaxed) {
            self.server.drained.notify_one();
        }
    }
}
