//! Leader election among replicas: one Lease, held by compare-and-swap.
//!
//! No wall clocks are compared: a holder counts as gone when its Lease has not changed for the Lease's duration,
//! measured by the clock of the observer. A holder gives up earlier than that.
//!
//! Invariant: from the moment when another replica may take the Lease, the previous holder no longer works.

mod evaluate;

use crate::{
    Cluster,
    api_error::{ApiError, ApiRequest},
    resource_kind,
};
use evaluate::{LeaseAction, ObservedLease, evaluate};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Name of the Lease, and the identity that acquires it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Namespace in which the Lease is created.
    pub namespace: String,
    /// Name of the Lease object, shared by all replicas.
    pub name: String,
    /// Holder identity; must be unique for each process.
    pub identity: String,
    /// Time for which the Lease is held without a renewal. Whole seconds, at least 1.
    pub duration: Duration,
}

/// Acquires the Lease, then renews it.
#[derive(Debug)]
pub struct LeaderElector {
    api: Api<Lease>,
    settings: LeaseSettings,
    now: fn() -> Timestamp,
    observed: Option<ObservedLease>,
    /// The object as last read or written.
    lease: Option<Lease>,
    problem: LeaseProblem,
}

/// Why the Lease cannot be read or written at present, if so. Clones share the value.
#[derive(Debug, Clone, Default)]
pub struct LeaseProblem(Arc<Mutex<Option<String>>>);

impl LeaseProblem {
    /// Returns the current problem as text; `None` if the last attempt succeeded.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the problem and returns whether it changed.
    fn set(&self, text: Option<String>) -> bool {
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *problem != text;
        *problem = text;
        changed
    }
}

/// Reason why the process no longer holds the Lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LostLease {
    /// Another process holds the Lease.
    #[error("the Lease {lease} was taken by {holder}: this process must stop working")]
    Taken {
        /// Namespace and name of the Lease.
        lease: String,
        /// Identity of the new holder.
        holder: String,
    },
    /// The Lease was not renewed in time.
    #[error(
        "the Lease {lease} was not renewed for {after:?} ({why}): another process may take it, so this one must \
         stop working"
    )]
    NotRenewed {
        /// Namespace and name of the Lease.
        lease: String,
        /// Time since the last successful renewal after which the process gives up.
        after: Duration,
        /// Error of the last attempt.
        why: String,
    },
}

impl LeaderElector {
    /// Returns an elector that has sent no request yet. `now` provides the renewal times, which are only for people.
    pub fn new(cluster: &Cluster, settings: LeaseSettings, now: fn() -> Timestamp) -> Self {
        let duration = Duration::from_secs(settings.duration.as_secs().max(1));
        let settings = LeaseSettings { duration, ..settings };
        let api = Api::namespaced(cluster.kube_client(), &settings.namespace);
        Self { api, settings, now, observed: None, lease: None, problem: LeaseProblem::default() }
    }

    /// Returns the shared problem of this elector, updated by every attempt.
    pub fn problem(&self) -> LeaseProblem {
        self.problem.clone()
    }

    /// Waits until this process holds the Lease.
    pub async fn acquire(&mut self) {
        loop {
            let wait = match self.try_acquire_or_renew().await {
                Ok(LeaseStep::Held) => return,
                Ok(LeaseStep::Wait(until)) => until.min(Instant::now() + self.retry_interval()),
                Err(error) => {
                    self.log_problem(&error);
                    Instant::now() + self.retry_interval()
                }
            };
            sleep_until(wait).await;
        }
    }

    /// Renews the Lease until it is lost, and returns why.
    pub async fn renew(&mut self) -> LostLease {
        let limit = self.settings.duration * 2 / 3;
        let mut renewed_at = Instant::now();
        loop {
            sleep(self.retry_interval()).await;
            let started_at = Instant::now();
            let end = renewed_at + limit;
            let why = match tokio::time::timeout_at(end, self.try_acquire_or_renew()).await {
                Ok(Ok(LeaseStep::Held)) => {
                    renewed_at = started_at;
                    continue;
                }
                Ok(Ok(LeaseStep::Wait(_))) => {
                    let holder = self.observed.as_ref().map(|observed| observed.holder.clone()).unwrap_or_default();
                    return LostLease::Taken { lease: self.lease_name(), holder };
                }
                Ok(Err(error)) => {
                    self.log_problem(&error);
                    error.to_string()
                }
                Err(_) => "the API server did not respond".to_owned(),
            };
            if (Instant::now() + self.retry_interval()) >= end {
                return LostLease::NotRenewed { lease: self.lease_name(), after: limit, why };
            }
        }
    }

    /// Releases the Lease, so that another replica can take it immediately. Best effort.
    pub async fn release(mut self) {
        let Some(mut lease) = self.lease.take().filter(|lease| holder(lease) == self.settings.identity) else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime((self.now)()));
        }
        let params = PostParams::default();
        let replace = self.api.replace(&self.settings.name, &params, &lease);
        match timeout(self.retry_interval(), replace).await {
            Ok(Ok(_)) => tracing::info!(lease = self.lease_name(), "released the Lease"),
            Ok(Err(error)) => tracing::warn!(lease = self.lease_name(), "cannot release the Lease: {error}"),
            Err(_) => tracing::warn!(lease = self.lease_name(), "cannot release the Lease: no response"),
        }
    }

    /// Reads the Lease, and acquires or renews it if allowed.
    async fn try_acquire_or_renew(&mut self) -> Result<LeaseStep, ApiError> {
        let found = self.request("get", self.api.get_opt(&self.settings.name)).await?;
        self.observe(found);
        let action = evaluate(self.observed.as_ref(), &self.settings.identity, Instant::now());
        let takes = match action {
            LeaseAction::Wait(until) => {
                self.problem.set(None);
                return Ok(LeaseStep::Wait(until));
            }
            LeaseAction::Acquire => true,
            LeaseAction::Renew => false,
        };
        let lease = self.build_lease(takes);
        let params = PostParams { dry_run: false, field_manager: Some("rollora-operator".to_owned()) };
        let written = if self.lease.is_some() {
            self.request("update", self.api.replace(&self.settings.name, &params, &lease)).await
        } else {
            self.request("create", self.api.create(&params, &lease)).await
        };
        match written {
            Ok(lease) => {
                if takes {
                    tracing::info!(lease = self.lease_name(), identity = self.settings.identity, "acquired the Lease");
                }
                self.problem.set(None);
                self.observe(Some(lease));
                Ok(LeaseStep::Held)
            }
            // Another replica was faster: read again.
            Err(ApiError::Conflict(_)) if takes => Ok(LeaseStep::Wait(Instant::now())),
            Err(ApiError::Conflict(message)) => Err(ApiError::Unavailable(message)),
            Err(error) => Err(error),
        }
    }

    async fn request<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        let resource = resource_kind::LEASE.group_resource();
        let request = ApiRequest { verb, resource: &resource, namespace: Some(&self.settings.namespace) };
        let limit = (self.settings.duration / 3).min(Duration::from_secs(5));
        match timeout(limit, call).await {
            Ok(answer) => answer.map_err(|error| ApiError::of(&error, request)),
            Err(_) => Err(ApiError::Unknown(format!("{request}: no response within {limit:?}"))),
        }
    }

    /// Records the current Lease. A changed version proves that its holder was alive.
    fn observe(&mut self, lease: Option<Lease>) {
        self.observed = lease.as_ref().map(|lease| {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let unchanged = self.observed.as_ref().filter(|observed| observed.version == version);
            let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
            ObservedLease {
                unchanged_since: unchanged.map_or_else(Instant::now, |observed| observed.unchanged_since),
                version,
                holder: holder(lease).to_owned(),
                duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            }
        });
        self.lease = lease;
    }

    /// Returns the Lease as this process would hold it.
    fn build_lease(&self, takes: bool) -> Lease {
        let now = MicroTime((self.now)());
        let before = self.lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let changes_hands = before.holder_identity.as_deref() != Some(&self.settings.identity);
        let transitions = before.lease_transitions.unwrap_or_default() + i32::from(takes && changes_hands);
        let spec = LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: if takes { Some(now.clone()) } else { before.acquire_time.clone() },
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..before
        };
        let blank = || ObjectMeta {
            name: Some(self.settings.name.clone()),
            namespace: Some(self.settings.namespace.clone()),
            ..ObjectMeta::default()
        };
        let metadata = self.lease.as_ref().map_or_else(blank, |lease| lease.metadata.clone());
        Lease { metadata, spec: Some(spec) }
    }

    fn retry_interval(&self) -> Duration {
        self.settings.duration * 2 / 15
    }

    fn lease_name(&self) -> String {
        format!("{}/{}", self.settings.namespace, self.settings.name)
    }

    /// Logs each problem once.
    fn log_problem(&self, error: &ApiError) {
        let text = error.to_string();
        if self.problem.set(Some(text.clone())) {
            tracing::warn!(lease = self.lease_name(), "cannot acquire or renew the Lease: {text}");
        }
    }
}

/// Result of one attempt to acquire or renew the Lease.
enum LeaseStep {
    Held,
    Wait(Instant),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
