//! Who works, where several could: one Lease, held by compare-and-swap.
//!
//! Nobody's wall clock is compared with anybody else's: a holder is taken for gone when its Lease has not changed for
//! as long as it says, counted by the clock of the one who watches. A holder gives up earlier than that.
//!
//! Invariant: from the moment on at which another may take the Lease, the one who held it does not work any more.

mod evaluate;

use crate::{
    Cluster,
    answer::{ApiError, Request},
    kinds,
};
use evaluate::{Act, Seen, evaluate};
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
pub struct Election {
    api: Api<Lease>,
    settings: LeaseSettings,
    now: fn() -> Timestamp,
    seen: Option<Seen>,
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

impl Election {
    /// An election that has not asked yet. `now` is what is written as the time of renewal, for people.
    pub fn new(cluster: &Cluster, settings: LeaseSettings, now: fn() -> Timestamp) -> Self {
        let duration = Duration::from_secs(settings.duration.as_secs().max(1));
        let settings = LeaseSettings { duration, ..settings };
        let api = Api::namespaced(cluster.client(), &settings.namespace);
        Self { api, settings, now, seen: None, lease: None, problem: LeaseProblem::default() }
    }

    /// Why the Lease cannot be had or kept, from now on.
    pub fn problem(&self) -> LeaseProblem {
        self.problem.clone()
    }

    /// Waits until the Lease is ours.
    pub async fn win(&mut self) {
        loop {
            let wait = match self.turn().await {
                Ok(Turn::Ours) => return,
                Ok(Turn::Wait(until)) => until.min(Instant::now() + self.retry()),
                Err(error) => {
                    self.say(&error);
                    Instant::now() + self.retry()
                }
            };
            sleep_until(wait).await;
        }
    }

    /// Renews the Lease until it is lost.
    pub async fn keep(&mut self) -> LostLease {
        let limit = self.settings.duration * 2 / 3;
        let mut renewed = Instant::now();
        loop {
            sleep(self.retry()).await;
            let begun = Instant::now();
            let end = renewed + limit;
            let why = match tokio::time::timeout_at(end, self.turn()).await {
                Ok(Ok(Turn::Ours)) => {
                    renewed = begun;
                    continue;
                }
                Ok(Ok(Turn::Wait(_))) => {
                    let holder = self.seen.as_ref().map(|seen| seen.holder.clone()).unwrap_or_default();
                    return LostLease::Taken { lease: self.lease_name(), holder };
                }
                Ok(Err(error)) => {
                    self.say(&error);
                    error.to_string()
                }
                Err(_) => "the API server does not answer".to_owned(),
            };
            if (Instant::now() + self.retry()) >= end {
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
        match timeout(self.retry(), replace).await {
            Ok(Ok(_)) => tracing::info!(lease = self.lease_name(), "the Lease is released"),
            Ok(Err(error)) => tracing::warn!(lease = self.lease_name(), "the Lease could not be released: {error}"),
            Err(_) => tracing::warn!(lease = self.lease_name(), "the Lease could not be released: no answer"),
        }
    }

    /// Looks at the Lease, and takes or renews it where that is right.
    async fn turn(&mut self) -> Result<Turn, ApiError> {
        let found = self.ask("get", self.api.get_opt(&self.settings.name)).await?;
        self.look(found);
        let act = evaluate(self.seen.as_ref(), &self.settings.identity, Instant::now());
        let takes = match act {
            Act::Wait(until) => {
                self.problem.set(None);
                return Ok(Turn::Wait(until));
            }
            Act::Acquire => true,
            Act::Renew => false,
        };
        let lease = self.claim(takes);
        let params = PostParams { dry_run: false, field_manager: Some("rollora-operator".to_owned()) };
        let written = if self.lease.is_some() {
            self.ask("update", self.api.replace(&self.settings.name, &params, &lease)).await
        } else {
            self.ask("create", self.api.create(&params, &lease)).await
        };
        match written {
            Ok(lease) => {
                if takes {
                    tracing::info!(lease = self.lease_name(), identity = self.settings.identity, "holds the Lease");
                }
                self.problem.set(None);
                self.look(Some(lease));
                Ok(Turn::Ours)
            }
            // Somebody was faster: look again.
            Err(ApiError::Conflict(_)) if takes => Ok(Turn::Wait(Instant::now())),
            Err(ApiError::Conflict(words)) => Err(ApiError::Unavailable(words)),
            Err(error) => Err(error),
        }
    }

    async fn ask<T>(
        &self,
        verb: &'static str,
        asking: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        let resource = kinds::LEASE.resource();
        let request = Request { verb, resource: &resource, namespace: Some(&self.settings.namespace) };
        let limit = (self.settings.duration / 3).min(Duration::from_secs(5));
        match timeout(limit, asking).await {
            Ok(answer) => answer.map_err(|error| ApiError::of(&error, request)),
            Err(_) => Err(ApiError::Unknown(format!("{request}: no answer within {limit:?}"))),
        }
    }

    /// Takes in the Lease as it is now: whoever changed it was alive then.
    fn look(&mut self, lease: Option<Lease>) {
        self.seen = lease.as_ref().map(|lease| {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let same = self.seen.as_ref().filter(|seen| seen.version == version);
            let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
            Seen {
                at: same.map_or_else(Instant::now, |seen| seen.at),
                version,
                holder: holder(lease).to_owned(),
                duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            }
        });
        self.lease = lease;
    }

    /// The Lease as we would hold it.
    fn claim(&self, takes: bool) -> Lease {
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

    fn retry(&self) -> Duration {
        self.settings.duration * 2 / 15
    }

    fn lease_name(&self) -> String {
        format!("{}/{}", self.settings.namespace, self.settings.name)
    }

    /// Each problem once.
    fn say(&self, error: &ApiError) {
        let words = error.to_string();
        if self.problem.set(Some(words.clone())) {
            tracing::warn!(lease = self.lease_name(), "the Lease cannot be had now: {words}");
        }
    }
}

/// How one turn ended.
enum Turn {
    Ours,
    Wait(Instant),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
