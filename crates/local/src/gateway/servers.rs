//! The servers behind the gateway: what is known of each, its load, its connections.
//!
//! A server that broke a connection is out at once ([`Server::suspect`]), before its sidecar has noticed, and in again
//! only when its sidecar has looked at it after that.

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

/// One server.
#[derive(Debug)]
pub(crate) struct GatewayServer {
    /// Host and port.
    pub(crate) name: String,
    pub(super) pool: ConnectionPool,
    in_flight: AtomicUsize,
    suspect: AtomicBool,
    /// Whether somebody waits for the end of the last request.
    notify_drained: AtomicBool,
    /// Rung when the server is quiet and that is awaited.
    drained: Arc<Notify>,
    /// Rung when it became suspect: its sidecar looks at it then.
    suspected: Arc<Notify>,
}

/// A request's place on a server; given up when dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    pub(super) server: Arc<GatewayServer>,
}

impl GatewayServers {
    pub(crate) fn new(all: Vec<Arc<GatewayServer>>) -> Self {
        Self { all, table: ArcSwap::default(), round_robin: AtomicUsize::new(0) }
    }

    /// Every server.
    pub(crate) fn all(&self) -> &[Arc<GatewayServer>] {
        &self.all
    }

    /// Takes in what is now known, one entry a server, in their order.
    pub(crate) fn update_routing(&self, facts: &[ServerRoutingState]) {
        self.table.store(Arc::new(RoutingTable::new(facts)));
    }

    /// How many servers requests may go to.
    pub(crate) fn ready_count(&self) -> usize {
        self.table.load().ready_count()
    }

    /// Chooses a server that is none of those in `tried`, and takes a place there.
    pub(crate) fn acquire(
        &self,
        need: ServerRequirement<'_>,
        tried: &[Arc<GatewayServer>],
    ) -> Result<InFlightGuard, NoServer> {
        let turn = self.round_robin.fetch_add(1, Relaxed);
        let index = self.table.load().choose(need, turn, |index| {
            let server = self.all.get(index)?;
            let out = server.suspect.load(Relaxed) || tried.iter().any(|tried| Arc::ptr_eq(tried, server));
            (!out).then(|| server.in_flight.load(Relaxed))
        })?;
        let server = self.all.get(index).ok_or(NoServer::NotReady)?;
        server.in_flight.fetch_add(1, Relaxed);
        Ok(InFlightGuard { server: Arc::clone(server) })
    }

    /// Drops connections that nobody used for a while. To be called every second.
    pub(crate) fn sweep(&self) {
        self.all.iter().for_each(|server| server.pool.sweep());
    }
}

impl GatewayServer {
    /// A server at `host` and `port`; `tasks` own its connections.
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
            drained: drained,
            suspected: suspected,
        }
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// It broke a connection: no request goes there until [`Self::trust`].
    pub(crate) fn mark_suspect(&self) {
        if !self.suspect.swap(true, Relaxed) {
            tracing::info!(server = self.name, "connection broken: no requests until its sidecar has looked at it");
        }
        self.pool.clear();
        self.suspected.notify_one();
    }

    /// Whether it is out until its sidecar has looked at it.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Its sidecar has looked at it.
    pub(crate) fn clear_suspicion(&self) {
        self.suspect.store(false, Relaxed);
    }

    /// Whether the bell is rung when the last request has ended.
    pub(crate) fn set_notify_drained(&self, awaited: bool) {
        self.notify_drained.store(awaited, Relaxed);
    }
}

#[cfg(test)]
impl GatewayServers {
    /// A request that stays on a server until it is dropped.
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
