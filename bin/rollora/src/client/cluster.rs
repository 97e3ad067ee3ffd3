//! Reads a Rollout of a cluster from the API server, and submits intents through its annotation.
//!
//! Only the API server is queried. The reports of sidecars and routers are known from the status, as the operator
//! observed them.

use super::RolloutClientError;
use crate::{command::ClusterLocation, runtime::now};
use futures_util::StreamExt;
use rollora_api::{
    names::INTENT_ANNOTATION,
    rollout::{Intent, Rollout},
    router_report::RulesReport,
};
use rollora_cluster::{ApiError, Cluster, ConnectOptions, RecordedEvent, RolloutApi};
use rollora_local::{EventRecord, FileView, IntentRequest, Overview};
use std::pin::Pin;
use uuid::Uuid;

/// Maximum number of attempts to write an intent that conflicts with other writes.
const MAX_WRITE_ATTEMPTS: usize = 5;

#[derive(Debug)]
pub(crate) struct ClusterClient {
    rollouts: RolloutApi,
    name: String,
}

pub(crate) struct ClusterOverviewWatch {
    rollouts: RolloutApi,
    name: String,
    changes: Pin<Box<dyn futures_util::Stream<Item = Result<Option<Rollout>, ApiError>> + Send>>,
    /// A change that was received, but not returned by `next` yet.
    pending: Option<Rollout>,
}

impl ClusterClient {
    /// Connects to the cluster. Without a name, the only Rollout of the namespace is used.
    pub(super) async fn connect(
        location: ClusterLocation,
        rollout: Option<String>,
    ) -> Result<Self, RolloutClientError> {
        let access = ConnectOptions { kubeconfig: location.kubeconfig, context: location.context };
        let cluster = Cluster::connect(&access, "rollora").await.map_err(|error| {
            let hint = if location.is_default {
                " (and no `rollora local` runs on the state folder .rollora here)"
            } else {
                ""
            };
            RolloutClientError::Cluster(format!("{error}{hint}"))
        })?;
        let rollouts = RolloutApi::new(&cluster, location.namespace.as_deref());
        let name = match rollout {
            Some(name) => name,
            None => only_rollout_name(&rollouts).await?,
        };
        Ok(Self { rollouts, name })
    }

    pub(super) async fn overview(&self) -> Result<Overview, RolloutClientError> {
        Ok(build_overview(&self.rollouts, self.get_rollout().await?).await)
    }

    pub(super) async fn submit_intent(&self, request: &IntentRequest) -> Result<Intent, RolloutClientError> {
        let IntentRequest { verb, revision, step, claimed_by } = request.clone();
        let intent = Intent { id: Uuid::new_v4().to_string(), verb, revision, step, claimed_by };
        let text = serde_json::json!(intent).to_string();
        for attempt in 1.. {
            let rollout = self.get_rollout().await?;
            intent.check_allowed(&rollout).map_err(|pending| RolloutClientError::Refused(pending.to_string()))?;
            let version = rollout.metadata.resource_version.unwrap_or_default();
            match self.rollouts.annotate(&self.name, &version, INTENT_ANNOTATION, &text).await {
                Ok(()) => break,
                // The operator writes the status often, so conflicts are expected.
                Err(ApiError::Conflict(_)) if attempt < MAX_WRITE_ATTEMPTS => {}
                Err(error) => return Err(RolloutClientError::Cluster(error.to_string())),
            }
        }
        Ok(intent)
    }

    pub(super) fn watch(&self) -> ClusterOverviewWatch {
        let changes = Box::pin(self.rollouts.watch(&self.name));
        ClusterOverviewWatch { rollouts: self.rollouts.clone(), name: self.name.clone(), changes, pending: None }
    }

    async fn get_rollout(&self) -> Result<Rollout, RolloutClientError> {
        let found =
            self.rollouts.get(&self.name).await.map_err(|error| RolloutClientError::Cluster(error.to_string()))?;
        match found {
            Some(rollout) => Ok(rollout),
            None => Err(not_found(&self.name, &self.rollouts).await),
        }
    }
}

impl ClusterOverviewWatch {
    pub(super) async fn next(&mut self) -> Result<Overview, RolloutClientError> {
        loop {
            if let Some(rollout) = &self.pending {
                let overview = build_overview(&self.rollouts, rollout.clone()).await;
                self.pending = None;
                return Ok(overview);
            }
            match self.changes.next().await {
                Some(Ok(Some(rollout))) => self.pending = Some(rollout),
                Some(Ok(None)) => return Err(not_found(&self.name, &self.rollouts).await),
                // An outage is temporary, and the last overview stays valid meanwhile. A missing permission is not.
                Some(Err(ApiError::Unavailable(_) | ApiError::Unknown(_))) => {}
                Some(Err(error)) => return Err(RolloutClientError::Cluster(error.to_string())),
                None => return Err(RolloutClientError::WatchEnded("the watch of the Rollout has ended".to_owned())),
            }
        }
    }
}

async fn only_rollout_name(rollouts: &RolloutApi) -> Result<String, RolloutClientError> {
    let mut names = rollouts.names().await.map_err(|error| RolloutClientError::Cluster(error.to_string()))?;
    let namespace = rollouts.namespace();
    match (names.pop(), names.as_slice()) {
        (Some(name), []) => Ok(name),
        (Some(last), [..]) => {
            names.push(last);
            let names = names.join(", ");
            Err(RolloutClientError::Cluster(format!(
                "namespace {namespace} has several Rollouts: {names}: give the name of one"
            )))
        }
        (None, _) => Err(RolloutClientError::Cluster(format!(
            "there is no Rollout in namespace {namespace}: give another namespace with -n, or apply a Rollout"
        ))),
    }
}

async fn not_found(name: &str, rollouts: &RolloutApi) -> RolloutClientError {
    let namespace = rollouts.namespace();
    // The names are only a hint, which is omitted if the user may not list Rollouts.
    let others = rollouts.names().await.unwrap_or_default();
    let others = if others.is_empty() { String::new() } else { format!("; existing Rollouts: {}", others.join(", ")) };
    RolloutClientError::Cluster(format!("there is no Rollout {name} in namespace {namespace}{others}"))
}

async fn build_overview(rollouts: &RolloutApi, rollout: Rollout) -> Overview {
    // Without the permission to read events, none are shown.
    let events = rollouts.events(&rollout.metadata.name).await.unwrap_or_default();
    let file = FileView { path: String::new(), problem: None };
    Overview {
        at: now(),
        listen: None,
        rollout,
        rollout_file: file.clone(),
        adapters_file: file,
        servers: Vec::new(),
        rules: RulesReport::default(),
        events: events.into_iter().map(event_record).collect(),
    }
}

fn event_record(event: RecordedEvent) -> EventRecord {
    let RecordedEvent { last_seen: at, count, warning, reason, message } = event;
    EventRecord { at, count, warning, reason, message }
}
