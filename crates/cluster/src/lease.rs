//! Who works, where several could: one Lease, held by compare-and-swap.
//!
//! Nobody's wall clock is compared with anybody else's: a holder is taken for gone when its Lease has not changed for
//! as long as it says, counted by the clock of the one who watches. A holder gives up earlier than that.
//!
//! Invariant: from the moment on at which another may take the Lease, the one who held it does not work any more.

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

/// Which Lease, and who wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who wants it; another word for every process.
    pub identity: String,
    /// How long it is held without being renewed. Whole seconds, at least 1.
    pub duration: Duration,
}

/// An election: to be won, then to be kept.
#[derive(Debug)]
pub struct LeaderElector {
    api: Api<Lease>,
    settings: LeaseSettings,
    now: fn() -> Timestamp,
    observed: Option<ObservedLease>,
    /// The object as it was last read or written.
    lease: Option<Lease>,
    problem: LeaseProblem,
}

/// Why the Lease cannot be read or written at present, where it cannot. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LeaseProblem(Arc<Mutex<Option<String>>>);

impl LeaseProblem {
    /// In words.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether that is news.
    fn set(&self, words: Option<String>) -> bool {
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *problem != words;
        *problem = words;
        is_news
    }
}

/// The Lease could not be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LostLease {
    /// Somebody else holds it.
    #[error("the Lease {lease} was taken by {holder}: this process must not go on")]
    Taken {
        /// Which.
        lease: String,
        /// By whom.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error(
        "the Lease {lease} could not be renewed for {after:?} ({why}): somebody else may take it, so this process must not go on"
    )]
    NotRenewed {
        /// Which.
        lease: String,
        /// How long it was tried.
        after: Duration,
        /// What the last try was answered.
        why: String,
    },
}

impl LeaderElector {
    /// An election that has not asked yet. `now` is what is written as the time of renewal, for people.
    pub fn new(cluster: &Cluster, settings: LeaseSettings, now: fn() -> Timestamp) -> Self {
        let duration = Duration::from_secs(settings.duration.as_secs().max(1));
        let settings = LeaseSettings { duration, ..settings };
        let api = Api::namespaced(cluster.kube_client(), &settings.namespace);
        Self { api, settings, now, observed: None, lease: None, problem: LeaseProblem::default() }
    }

    /// Why the Lease cannot be had or kept, from now on.
    pub fn problem(&self) -> LeaseProblem {
        self.problem.clone()
    }

    /// Waits until the Lease is ours.
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

    /// Renews the Lease until it is lost.
    pub async fn renew(&mut self) -> LostLease {
        let limit = self.settings.duration * 2 / 3;
        let mut renewed = Instant::now();
        loop {
            sleep(self.retry_interval()).await;
            let begun = Instant::now();
            let end = renewed + limit;
            let why = match tokio::time::timeout_at(end, self.try_acquire_or_renew()).await {
                Ok(Ok(LeaseStep::Held)) => {
                    renewed = begun;
                    continue;
                }
                Ok(Ok(LeaseStep::Wait(_))) => {
                    let holder = self.observed.as_ref().map(|seen| seen.holder.clone()).unwrap_or_default();
                    return LostLease::Taken { lease: self.lease_name(), holder };
                }
                Ok(Err(error)) => {
                    self.log_problem(&error);
                    error.to_string()
                }
                Err(_) => "the API server does not answer".to_owned(),
            };
            if (Instant::now() + self.retry_interval()) >= end {
                return LostLease::NotRenewed { lease: self.lease_name(), after: limit, why };
            }
        }
    }

    /// Lets go of the Lease, so that another one need not wait. Best effort.
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
            Ok(Ok(_)) => tracing::info!(lease = self.lease_name(), "the Lease is released"),
            Ok(Err(error)) => tracing::warn!(lease = self.lease_name(), "the Lease could not be released: {error}"),
            Err(_) => tracing::warn!(lease = self.lease_name(), "the Lease could not be released: no answer"),
        }
    }

    /// Looks at the Lease, and takes or renews it where that is right.
    async fn try_acquire_or_renew(&mut self) -> Result<LeaseStep, ApiError> {
        let found = self.request("get", self.api.get_opt(&self.settings.name)).await?;
        self.observe(found);
        let act = evaluate(self.observed.as_ref(), &self.settings.identity, Instant::now());
        let takes = match act {
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
                    tracing::info!(lease = self.lease_name(), identity = self.settings.identity, "holds the Lease");
                }
                self.problem.set(None);
                self.observe(Some(lease));
                Ok(LeaseStep::Held)
            }
            // Somebody was faster: look again.
            Err(ApiError::Conflict(_)) if takes => Ok(LeaseStep::Wait(Instant::now())),
            Err(ApiError::Conflict(words)) => Err(ApiError::Unavailable(words)),
            Err(error) => Err(error),
        }
    }

    async fn request<T>(
        &self,
        verb: &'static str,
        asking: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        let resource = resource_kind::LEASE.group_resource();
        let request = ApiRequest { verb, resource: &resource, namespace: Some(&self.settings.namespace) };
        let limit = (self.settings.duration / 3).min(Duration::from_secs(5));
        match timeout(limit, asking).await {
            Ok(answer) => answer.map_err(|error| ApiError::of(&error, request)),
            Err(_) => Err(ApiError::Unknown(format!("{request}: no answer within {limit:?}"))),
        }
    }

    /// Takes in the Lease as it is now: whoever changed it was alive then.
    fn observe(&mut self, lease: Option<Lease>) {
        self.observed = lease.as_ref().map(|lease| {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let same = self.observed.as_ref().filter(|seen| seen.version == version);
            let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
            ObservedLease {
                unchanged_since: same.map_or_else(Instant::now, |seen| seen.unchanged_since),
                version,
                holder: holder(lease).to_owned(),
                duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            }
        });
        self.lease = lease;
    }

    /// The Lease as we would hold it.
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

    /// Each problem once.
    fn log_problem(&self, error: &ApiError) {
        let words = error.to_string();
        if self.problem.set(Some(words.clone())) {
            tracing::warn!(lease = self.lease_name(), "the Lease cannot be had now: {words}");
        }
    }
}

/// How one turn ended.
enum LeaseStep {
    Held,
    Wait(Instant),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
