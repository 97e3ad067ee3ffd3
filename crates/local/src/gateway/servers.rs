//! The servers behind the gateway: what is known of each, its load, its connections.
//!
//! A server that broke a connection is out at once ([`Server::suspect`]), before its sidecar has noticed, and in again
//! only when its sidecar has looked at it after that.

use super::{
    choose::{Need, NoServer, ServerFacts, Table},
    pool::Pool,
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
pub(crate) struct Servers {
    all: Vec<Arc<Server>>,
    table: ArcSwap<Table>,
    turn: AtomicUsize,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Host and port.
    pub(crate) name: String,
    pub(super) pool: Pool,
    in_flight: AtomicUsize,
    suspect: AtomicBool,
    /// Whether somebody waits for the end of the last request.
    awaits_quiet: AtomicBool,
    /// Rung when the server is quiet and that is awaited.
    bell: Arc<Notify>,
    /// Rung when it became suspect: its sidecar looks at it then.
    doubts: Arc<Notify>,
}

/// A request's place on a server; given up when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(super) server: Arc<Server>,
}

impl Servers {
    pub(crate) fn new(all: Vec<Arc<Server>>) -> Self {
        Self { all, table: ArcSwap::default(), turn: AtomicUsize::new(0) }
    }

    /// Every server.
    pub(crate) fn all(&self) -> &[Arc<Server>] {
        &self.all
    }

    /// Takes in what is now known, one entry a server, in their order.
    pub(crate) fn know(&self, facts: &[ServerFacts]) {
        self.table.store(Arc::new(Table::new(facts)));
    }

    /// How many servers requests may go to.
    pub(crate) fn ready(&self) -> usize {
        self.table.load().ready()
    }

    /// Chooses a server that is none of those in `tried`, and takes a place there.
    pub(crate) fn lease(&self, need: Need<'_>, tried: &[Arc<Server>]) -> Result<Lease, NoServer> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let index = self.table.load().choose(need, turn, |index| {
            let server = self.all.get(index)?;
            let out = server.suspect.load(Relaxed) || tried.iter().any(|tried| Arc::ptr_eq(tried, server));
            (!out).then(|| server.in_flight.load(Relaxed))
        })?;
        let server = self.all.get(index).ok_or(NoServer::NotReady)?;
        server.in_flight.fetch_add(1, Relaxed);
        Ok(Lease { server: Arc::clone(server) })
    }

    /// Drops connections that nobody used for a while. To be called every second.
    pub(crate) fn sweep(&self) {
        self.all.iter().for_each(|server| server.pool.sweep());
    }
}

impl Server {
    /// A server at `host` and `port`; `tasks` own its connections.
    pub(crate) fn new(
        name: String,
        host: &str,
        port: u16,
        tasks: TaskTracker,
        bell: Arc<Notify>,
        doubts: Arc<Notify>,
    ) -> Self {
        let pool = Pool::new(host.to_owned(), port, tasks);
        Self {
            name,
            pool,
            in_flight: AtomicUsize::new(0),
            suspect: AtomicBool::new(false),
            awaits_quiet: AtomicBool::new(false),
            bell,
            doubts,
        }
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// It broke a connection: no request goes there until [`Self::trust`].
    pub(crate) fn suspect(&self) {
        if !self.suspect.swap(true, Relaxed) {
            tracing::info!(server = self.name, "connection broken: no requests until its sidecar has looked at it");
        }
        self.pool.clear();
        self.doubts.notify_one();
    }

    /// Whether it is out until its sidecar has looked at it.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Its sidecar has looked at it.
    pub(crate) fn trust(&self) {
        self.suspect.store(false, Relaxed);
    }

    /// Whether the bell is rung when the last request has ended.
    pub(crate) fn await_quiet(&self, awaited: bool) {
        self.awaits_quiet.store(awaited, Relaxed);
    }
}

#[cfg(test)]
impl Servers {
    /// A request that stays on a server until it is dropped.
    pub(crate) fn occupy(&self, index: usize) -> Lease {
        let server = Arc::clone(&self.all[index]);
        server.in_flight.fetch_add(1, Relaxed);
        Lease { server }
    }
}

#[cfg(test)]
impl Lease {
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let before = self.server.in_flight.fetch_sub(1, Relaxed);
        if before == 1 && self.server.awaits_quiet.load(Relaxed) {
            self.server.bell.notify_one();
        }
    }
}
