//! Uncached access to Rollouts for the CLI: a few requests per command.

use crate::{
    Cluster,
    api_error::{ApiError, ApiRequest},
    cached_client::parse_rollout,
    resource_kind,
    watch::{WatchEvent, WatchOptions, watch},
};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
    core::DynamicObject,
};
use rollora_api::rollout::Rollout;
use serde_json::json;
use std::{future::Future, time::Duration};
use tokio::time::timeout;

/// Timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of events that one list of a namespace returns.
const MAX_EVENTS: u32 = 1000;

/// Client for the Rollouts of one namespace.
#[derive(Debug, Clone)]
pub struct RolloutApi {
    cluster: Cluster,
    namespace: String,
}

/// An event about a Rollout, read from the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Time of the last occurrence in the series.
    pub last_seen: Timestamp,
    /// Number of occurrences in the series, at least 1.
    pub count: u32,
    /// Whether the event has type `Warning`: a person should check the Rollout.
    pub warning: bool,
    /// Reason in CamelCase, for machines.
    pub reason: String,
    /// Note for people, as the operator wrote it.
    pub message: String,
}

impl RolloutApi {
    /// Uses `namespace`, or else the namespace of the kubeconfig's context.
    pub fn new(cluster: &Cluster, namespace: Option<&str>) -> Self {
        let namespace = namespace.unwrap_or_else(|| cluster.default_namespace()).to_owned();
        Self { cluster: cluster.clone(), namespace }
    }

    /// Returns the namespace of all requests.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Lists the names of all Rollouts in the namespace.
    pub async fn names(&self) -> Result<Vec<String>, ApiError> {
        let all = self.request("list", self.api().list_metadata(&ListParams::default())).await?;
        Ok(all.items.into_iter().filter_map(|object| object.metadata.name).collect())
    }

    /// Reads one Rollout; `None` if it does not exist.
    pub async fn get(&self, name: &str) -> Result<Option<Rollout>, ApiError> {
        let found = self.request("get", self.api().get_opt(name)).await?;
        found.map(|object| self.parse(object)).transpose()
    }

    /// Watches one Rollout: its current state, then every change; `None` when it was deleted.
    ///
    /// The stream never ends. An outage yields an error, after which the stream continues.
    pub fn watch(&self, name: &str) -> impl Stream<Item = Result<Option<Rollout>, ApiError>> + Send + Unpin + use<> {
        let fields = Some(format!("metadata.name={name}"));
        let selection = WatchOptions { field_selector: fields, ..WatchOptions::default() };
        let resource = resource_kind::ROLLOUT.group_resource();
        let (client, namespace) = (self.clone(), Some(self.namespace.clone()));
        watch(self.api(), &selection, resource, namespace).map(move |event| match event? {
            WatchEvent::Reset(objects) => objects.into_iter().next().map(|object| client.parse(object)).transpose(),
            WatchEvent::Apply(object) => client.parse(object).map(Some),
            WatchEvent::Delete(_) => Ok(None),
        })
    }

    /// Writes one annotation of the Rollout that was read as `version`.
    pub async fn annotate(&self, name: &str, version: &str, annotation: &str, value: &str) -> Result<(), ApiError> {
        let patch = json!({ "metadata": { "resourceVersion": version, "annotations": { annotation: value } } });
        self.request("patch", self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch))).await.map(drop)
    }

    /// Returns the events about one Rollout that the API server still has, oldest first.
    pub async fn events(&self, name: &str) -> Result<Vec<RecordedEvent>, ApiError> {
        let api: Api<Event> = Api::namespaced(self.cluster.kube_client(), &self.namespace);
        let resource = resource_kind::EVENT.group_resource();
        let request = ApiRequest { verb: "list", resource: &resource, namespace: Some(&self.namespace) };
        let params = ListParams::default().limit(MAX_EVENTS);
        let events = with_timeout(request, api.list(&params)).await?;
        let mut recorded: Vec<RecordedEvent> =
            events.items.into_iter().filter(|event| is_about(event, name)).map(to_recorded_event).collect();
        recorded.sort_by_key(|event| event.last_seen);
        Ok(recorded)
    }

    fn api(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.cluster.kube_client(), &self.namespace, &resource_kind::ROLLOUT.api_resource())
    }

    fn parse(&self, object: DynamicObject) -> Result<Rollout, ApiError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        parse_rollout(object).map_err(|error| {
            let namespace = &self.namespace;
            ApiError::Refused(format!(
                "Rollout {namespace}/{name} cannot be parsed by this version of the program: {error}"
            ))
        })
    }

    async fn request<T>(&self, verb: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        let resource = resource_kind::ROLLOUT.group_resource();
        let result =
            with_timeout(ApiRequest { verb, resource: &resource, namespace: Some(&self.namespace) }, call).await;
        result.map_err(|error| match error {
            ApiError::NotFound(_) => ApiError::NotFound(format!(
                "the kind {resource} is not installed at {}: apply manifests/operator, or crds/",
                self.cluster.server()
            )),
            other => other,
        })
    }
}

async fn with_timeout<T>(request: ApiRequest<'_>, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match timeout(TIMEOUT, call).await {
        Ok(response) => response.map_err(|error| ApiError::of(&error, request)),
        Err(_) => Err(ApiError::Unavailable(format!("{request}: no response within {TIMEOUT:?}"))),
    }
}

fn is_about(event: &Event, name: &str) -> bool {
    event.regarding.as_ref().is_some_and(|regarding| {
        regarding.kind.as_deref() == Some(resource_kind::ROLLOUT.name) && regarding.name.as_deref() == Some(name)
    })
}

fn to_recorded_event(event: Event) -> RecordedEvent {
    let series = event.series;
    let first = event.event_time.map(|time| time.0).or(event.metadata.creation_timestamp.map(|time| time.0));
    RecordedEvent {
        last_seen: series.as_ref().map(|series| series.last_observed_time.0).or(first).unwrap_or_default(),
        count: series.and_then(|series| u32::try_from(series.count).ok()).unwrap_or(1),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.unwrap_or_default(),
        message: event.note.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(value: serde_json::Value) -> Event {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn event_has_time_and_count_of_its_last_repetition() {
        let once = event(json!({
            "metadata": {}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Warning", "reason": "Held",
            "note": "a server lost it", "regarding": { "kind": "Rollout", "name": "chat" },
        }));
        assert!(is_about(&once, "chat") && !is_about(&once, "other"));
        let recorded = to_recorded_event(once.clone());
        assert_eq!((recorded.count, recorded.warning, recorded.message.as_str()), (1, true, "a server lost it"));
        let mut repeated = once;
        repeated.series = serde_json::from_value(json!({
            "count": 3, "lastObservedTime": "2026-01-01T00:01:00.000000Z",
        }))
        .unwrap();
        let recorded = to_recorded_event(repeated);
        assert_eq!((recorded.count, recorded.last_seen.to_string().as_str()), (3, "2026-01-01T00:01:00Z"));
    }

    #[test]
    fn event_of_another_kind_is_ignored() {
        let pod = event(json!({ "metadata": {}, "eventTime": null, "regarding": { "kind": "Pod", "name": "chat" } }));
        assert!(!is_about(&pod, "chat"));
    }
}
