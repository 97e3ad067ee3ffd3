//! The servers and their sidecars: what each is told and what it tells, for the operator and the gateway alike.
//!
//! Invariant: the gateway knows what the operator knows. Both get what sidecars say from [`LocalFleet::refresh`], so
//! that weight never arrives before the gateway has heard who has the adapter.

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

/// The name of the only router of one machine.
const GATEWAY_NAME: &str = "gateway";

/// The servers of one machine.
#[derive(Clone)]
pub(crate) struct LocalFleet(Arc<FleetInner>);

struct FleetInner {
    store: LocalDocumentStore,
    servers: Arc<GatewayServers>,
    sidecars: Vec<SidecarHandle>,
    trials: Mutex<Vec<TrialState>>,
    /// Since when servers are not Ready that may be so again as they are.
    unready_since: Mutex<Vec<Option<Timestamp>>>,
    /// Rung by the gateway when a server is quiet and that is awaited.
    drained: Arc<Notify>,
}

/// One server with its sidecar.
pub(crate) struct SidecarHandle {
    /// Where the server is.
    pub(crate) url: String,
    /// What its sidecar is told.
    pub(crate) desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    /// What its sidecar tells.
    pub(crate) status: watch::Receiver<Arc<SidecarStatus>>,
    /// What its sidecar tells beside that, because it moves all the time.
    pub(crate) heartbeat: watch::Receiver<Option<Heartbeat>>,
    /// Where its sidecar is told that somebody looks.
    pub(crate) usage_poll_boost: UsagePollBoost,
}

impl LocalFleet {
    /// The servers, `members` in their order.
    pub(crate) fn new(
        store: LocalDocumentStore,
        servers: Arc<GatewayServers>,
        members: Vec<SidecarHandle>,
        bell: Arc<Notify>,
    ) -> Self {
        let trials = Mutex::new(vec![TrialState::default(); members.len()]);
        let unready = Mutex::new(vec![None; members.len()]);
        Self(Arc::new(FleetInner { store, servers, sidecars: members, trials, unready_since: unready, drained: bell }))
    }

    /// Hands what is known on: to the gateway what the sidecars say, to the sidecars what is desired.
    pub(crate) fn refresh(&self) {
        let documents = self.0.store.snapshot();
        let key = documents.directives.parsed.as_deref();
        let known: Vec<_> = self
            .sidecars_with_servers()
            .map(|(member, server)| routing_state(key, &server.name, &member.status.borrow()))
            .collect();
        // First the gateway, so that no request goes to a server whose trial begins below.
        self.0.servers.update_routing(&known);
        let calm =
            |index: usize| known[index].ready && !known[index].pilot && !self.0.servers.all()[index].is_suspect();
        let mut trials = self.0.trials.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (member, server)) in self.sidecars_with_servers().enumerate() {
            let others = (0..known.len()).filter(|other| *other != index && calm(*other)).count();
            let trial = &mut trials[index];
            trial.advance(&known[index].on_trial, server.in_flight(), others, clock::now());
            server.set_notify_drained(trial.is_draining());
            let wanted = desired_adapters(&documents, &server.name, trial.is_allowed());
            member.desired.send_if_modified(|current| {
                let changed = current.as_deref() != Some(&wanted);
                if changed {
                    *current = Some(Arc::new(wanted));
                }
                changed
            });
        }
    }

    /// Refreshes whenever something happened, for as long as the process runs.
    pub(crate) async fn run(&self) {
        let mut work = self.0.store.subscribe_reconcile();
        loop {
            self.refresh();
            let deadline = self.time_to_deadline(clock::now());
            tokio::select! {
                changed = work.changed() => if changed.is_err() { return },
                () = self.0.drained.notified() => {}
                () = tokio::time::sleep(deadline) => {}
            }
        }
    }

    /// Follows what one sidecar says, for as long as it runs.
    pub(crate) async fn watch_sidecar(&self, index: usize) {
        let (Some(member), Some(server)) = (self.0.sidecars.get(index), self.0.servers.all().get(index)) else {
            return;
        };
        let mut status = member.status.clone();
        while status.changed().await.is_ok() {
            server.clear_suspicion();
            self.refresh();
            self.0.store.notify();
        }
    }

    /// Every server, for people.
    pub(crate) fn server_views(&self) -> Vec<ServerView> {
        let documents = self.0.store.snapshot();
        let key = documents.directives.parsed.as_deref();
        let view = |(member, server): (&SidecarHandle, &Arc<GatewayServer>)| {
            let status = full_status(&member.status, &member.heartbeat);
            let facts = routing_state(key, &server.name, &status);
            ServerView {
                name: server.name.clone(),
                ready: facts.ready && !server.is_suspect(),
                in_flight: server.in_flight(),
                pilot: facts.pilot,
                status,
            }
        };
        self.sidecars_with_servers().map(view).collect()
    }

    /// What each sidecar tells.
    pub(crate) fn sidecar_statuses(&self) -> Vec<watch::Receiver<Arc<SidecarStatus>>> {
        self.0.sidecars.iter().map(|member| member.status.clone()).collect()
    }

    /// The gateway's servers.
    pub(crate) fn servers(&self) -> &Arc<GatewayServers> {
        &self.0.servers
    }

    fn sidecars_with_servers(&self) -> impl Iterator<Item = (&SidecarHandle, &Arc<GatewayServer>)> {
        self.0.sidecars.iter().zip(self.0.servers.all())
    }

    fn time_to_deadline(&self, now: Timestamp) -> std::time::Duration {
        let trials = self.0.trials.lock().unwrap_or_else(PoisonError::into_inner);
        let soonest = trials.iter().filter_map(TrialState::deadline).min();
        let hour = std::time::Duration::from_hours(1);
        soonest.map_or(hour, |at| std::time::Duration::try_from(at.duration_since(now)).unwrap_or_default().min(hour))
    }
}

impl Fleet for LocalFleet {
    async fn servers(&self, _: &RolloutKey, _: &PoolRef) -> Result<Polled<ObservedServer>, ReadError> {
        self.refresh();
        let now = clock::now();
        // Nothing that holds this lock can panic half way: the content is good in any case.
        let mut unready = self.0.unready_since.lock().unwrap_or_else(PoisonError::into_inner);
        let server = |((member, server), unready): ((&SidecarHandle, &Arc<GatewayServer>), &mut Option<Timestamp>)| {
            member.usage_poll_boost.request();
            let status = Arc::new(full_status(&member.status, &member.heartbeat));
            let ready = status.server.is_some() && status.readiness.ready && !server.is_suspect();
            // One that is down comes back as another one, and is looked at then.
            *unready = (!ready && status.server.is_some()).then(|| unready.unwrap_or(now));
            let (unready_since, leaving) = (*unready, false);
            ObservedServer {
                name: server.name.clone(),
                uid: member.url.clone(),
                ready,
                unready_since,
                terminating: leaving,
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
