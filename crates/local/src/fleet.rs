//! The vLLM servers and their sidecars: sends the desired state to the sidecars, and their statuses to the operator and
//! the gateway.
//!
//! Invariant: [`LocalFleet::refresh`] sends the statuses to the gateway before the operator reads them, so that an
//! adapter never gets weight before the gateway knows which servers have it.

#[cfg(test)]
mod tests;

use crate::{
    clock,
    desired::{TrialState, desired_adapters, routing_state},
    document_store::LocalDocumentStore,
    gateway::servers::{GatewayServer, GatewayServers},
    overview::ServerView,
};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, names::ModelName, rewrite::PoolRef, sidecar_status::SidecarStatus};
use rollora_operator::ports::{Fleet, ObservedRouter, ObservedServer, Polled, ReadError, RolloutKey};
use rollora_sidecar::{Heartbeat, UsagePollBoost, full_status};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};

/// Name under which the gateway, the only router, is reported.
const GATEWAY_NAME: &str = "gateway";

#[derive(Clone)]
pub(crate) struct LocalFleet(Arc<FleetInner>);

struct FleetInner {
    store: LocalDocumentStore,
    servers: Arc<GatewayServers>,
    sidecars: Vec<SidecarHandle>,
    trials: Mutex<Vec<TrialState>>,
    /// Per server, since when it runs without being Ready. `None` if it is Ready or down.
    unready_since: Mutex<Vec<Option<Timestamp>>>,
    /// Notified by the gateway when a draining server has no more requests in flight.
    drained: Arc<Notify>,
}

/// Channels to and from the sidecar of one server.
pub(crate) struct SidecarHandle {
    /// Base URL of the server.
    pub(crate) url: String,
    /// Sends the desired state to the sidecar.
    pub(crate) desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    /// Receives the status of the sidecar.
    pub(crate) status: watch::Receiver<Arc<SidecarStatus>>,
    /// Receives the part of the status that changes all the time, kept apart so that it wakes no receiver of `status`.
    pub(crate) heartbeat: watch::Receiver<Option<Heartbeat>>,
    /// Makes the sidecar poll the usage of adapters more often.
    pub(crate) usage_poll_boost: UsagePollBoost,
}

impl LocalFleet {
    /// Creates the fleet; `sidecars` are in the order of `servers`.
    pub(crate) fn new(
        store: LocalDocumentStore,
        servers: Arc<GatewayServers>,
        sidecars: Vec<SidecarHandle>,
        drained: Arc<Notify>,
    ) -> Self {
        let trials = Mutex::new(vec![TrialState::default(); sidecars.len()]);
        let unready = Mutex::new(vec![None; sidecars.len()]);
        Self(Arc::new(FleetInner { store, servers, sidecars, trials, unready_since: unready, drained }))
    }

    /// Sends the statuses of the sidecars to the gateway, and the desired state to the sidecars.
    pub(crate) fn refresh(&self) {
        let snapshot = self.0.store.snapshot();
        let directives = snapshot.directives.parsed.as_deref();
        let routing: Vec<_> = self
            .sidecars_with_servers()
            .map(|(sidecar, server)| routing_state(directives, &server.name, &sidecar.status.borrow()))
            .collect();
        // The gateway comes first, so that it sends no request to a server whose trial begins below.
        self.0.servers.update_routing(&routing);
        let can_take_requests =
            |index: usize| routing[index].ready && !routing[index].pilot && !self.0.servers.all()[index].is_suspect();
        let mut trials = self.0.trials.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (sidecar, server)) in self.sidecars_with_servers().enumerate() {
            let others = (0..routing.len()).filter(|other| *other != index && can_take_requests(*other)).count();
            let trial = &mut trials[index];
            trial.advance(&routing[index].on_trial, server.in_flight(), others, clock::now());
            server.set_notify_drained(trial.is_draining());
            let desired = desired_adapters(&snapshot, &server.name, trial.is_allowed());
            sidecar.desired.send_if_modified(|current| {
                let changed = current.as_deref() != Some(&desired);
                if changed {
                    *current = Some(Arc::new(desired));
                }
                changed
            });
        }
    }

    /// Refreshes after every change, for as long as the process runs.
    pub(crate) async fn run(&self) {
        let mut changes = self.0.store.subscribe_reconcile();
        loop {
            self.refresh();
            let deadline = self.time_to_deadline(clock::now());
            tokio::select! {
                result = changes.changed() => if result.is_err() { return },
                () = self.0.drained.notified() => {}
                () = tokio::time::sleep(deadline) => {}
            }
        }
    }

    /// Follows the status of one sidecar until the sidecar ends.
    pub(crate) async fn watch_sidecar(&self, index: usize) {
        let (Some(sidecar), Some(server)) = (self.0.sidecars.get(index), self.0.servers.all().get(index)) else {
            return;
        };
        let mut status = sidecar.status.clone();
        while status.changed().await.is_ok() {
            server.clear_suspicion();
            self.refresh();
            self.0.store.notify();
        }
    }

    pub(crate) fn server_views(&self) -> Vec<ServerView> {
        let snapshot = self.0.store.snapshot();
        let directives = snapshot.directives.parsed.as_deref();
        let view = |(sidecar, server): (&SidecarHandle, &Arc<GatewayServer>)| {
            let status = full_status(&sidecar.status, &sidecar.heartbeat);
            let routing = routing_state(directives, &server.name, &status);
            ServerView {
                name: server.name.clone(),
                ready: routing.ready && !server.is_suspect(),
                in_flight: server.in_flight(),
                pilot: routing.pilot,
                status,
            }
        };
        self.sidecars_with_servers().map(view).collect()
    }

    pub(crate) fn sidecar_statuses(&self) -> Vec<watch::Receiver<Arc<SidecarStatus>>> {
        self.0.sidecars.iter().map(|sidecar| sidecar.status.clone()).collect()
    }

    pub(crate) fn servers(&self) -> &Arc<GatewayServers> {
        &self.0.servers
    }

    fn sidecars_with_servers(&self) -> impl Iterator<Item = (&SidecarHandle, &Arc<GatewayServer>)> {
        self.0.sidecars.iter().zip(self.0.servers.all())
    }

    fn time_to_deadline(&self, now: Timestamp) -> std::time::Duration {
        let trials = self.0.trials.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = trials.iter().filter_map(TrialState::deadline).min();
        let hour = std::time::Duration::from_hours(1);
        earliest.map_or(hour, |at| std::time::Duration::try_from(at.duration_since(now)).unwrap_or_default().min(hour))
    }
}

impl Fleet for LocalFleet {
    async fn servers(&self, _: &RolloutKey, _: &PoolRef) -> Result<Polled<ObservedServer>, ReadError> {
        self.refresh();
        let now = clock::now();
        // No code under this lock can leave the content half-changed, so a poisoned lock is safe to use.
        let mut unready = self.0.unready_since.lock().unwrap_or_else(PoisonError::into_inner);
        let server = |((sidecar, server), unready): ((&SidecarHandle, &Arc<GatewayServer>), &mut Option<Timestamp>)| {
            sidecar.usage_poll_boost.request();
            let status = Arc::new(full_status(&sidecar.status, &sidecar.heartbeat));
            let ready = status.server.is_some() && status.readiness.ready && !server.is_suspect();
            // A server that is down restarts as another process, and the time begins with that process.
            *unready = (!ready && status.server.is_some()).then(|| unready.unwrap_or(now));
            let (unready_since, terminating) = (*unready, false);
            ObservedServer {
                name: server.name.clone(),
                uid: sidecar.url.clone(),
                ready,
                unready_since,
                terminating,
                status: Ok(status),
            }
        };
        Ok(self.sidecars_with_servers().zip(unready.iter_mut()).map(server).collect::<Vec<_>>().into())
    }

    async fn routers(&self, _: &RolloutKey, _: &PoolRef, _: &ModelName) -> Result<Polled<ObservedRouter>, ReadError> {
        let report = self.0.store.rules().report(clock::now());
        Ok(vec![ObservedRouter { name: GATEWAY_NAME.to_owned(), report: Ok(report.into()) }].into())
    }
}
