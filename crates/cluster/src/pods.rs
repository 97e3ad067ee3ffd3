//! Pods and InferencePools, reduced to the fields that pod discovery needs.

use crate::object_cache::{CacheItem, NamespacedName};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod as KubePod, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Resource, ResourceExt,
    core::{DynamicObject, ObjectMeta},
};
use rollora_api::names::{
    ADAPTERS_ANNOTATION, ROUTER_NAMESPACE_ANNOTATION, ROUTER_POOL_LABEL, ROUTER_PORT_ANNOTATION, SIDECAR_LABEL,
    SIDECAR_PORT_ANNOTATION,
};
use serde::{Deserialize, Deserializer};
use std::{collections::BTreeMap, net::IpAddr};

/// A pod, reduced to the fields that pod discovery needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags are independent of each other")]
pub struct Pod {
    /// `metadata.name`; qualified with the namespace if that differs from the pool's.
    pub name: String,
    /// `metadata.uid`, unique over time.
    pub uid: String,
    /// `status.podIP`; `None` before it is assigned.
    pub ip: Option<IpAddr>,
    /// Whether the pod receives requests: its condition `Ready` is `True`, and it is not being deleted.
    pub ready: bool,
    /// When the condition `Ready` last became other than `True`; `None` if it is `True` or not set.
    pub unready_since: Option<Timestamp>,
    /// Whether the pod has a deletion timestamp.
    pub terminating: bool,
    /// Whether all containers have exited and will not be restarted (phase `Succeeded` or `Failed`).
    pub finished: bool,
    /// IDs of the containers, joined by commas; they change with every restart.
    pub container_ids: String,
    /// Names of the ConfigMaps that the pod mounts.
    pub config_maps: Vec<String>,
    /// ConfigMap that its sidecars watch according to its annotation; the error says why that cannot be parsed.
    pub watched_config_map: Option<Result<NamespacedName, String>>,
    /// Whether the pod has the label `rollora.dev/sidecar`.
    pub has_sidecar: bool,
    /// Pool for which the pod routes, if it is a router.
    pub router_for: Option<NamespacedName>,
    /// Ports of its sidecars in the order of the pool's target ports, from its annotation; the error says why that
    /// cannot be parsed.
    pub sidecar_ports: Option<Result<Vec<u16>, String>>,
    /// Port of its router, from its annotation; the error says why that cannot be parsed.
    pub router_port: Option<Result<u16, String>>,
}

/// A pod as the API server sends it, without the fields that are not used: a complete one is many times as large, and a
/// list has hundreds.
#[derive(Debug, Clone, Resource, Deserialize)]
#[resource(inherit = "KubePod")]
pub(crate) struct PodObject {
    #[serde(deserialize_with = "deserialize_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    config_map: Option<ConfigMapVolumeSource>,
    projected: Option<ProjectedVolumeSource>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ProjectedVolumeSource {
    sources: Option<Vec<Volume>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ConfigMapVolumeSource {
    name: String,
}

impl Volume {
    /// Returns the names of the ConfigMaps that this volume mounts, directly or as a projected source.
    fn config_map_names(&self) -> Vec<&str> {
        let projected = self.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let all = self.config_map.iter().chain(projected.filter_map(|source| source.config_map.as_ref()));
        all.map(|map| map.name.as_str()).collect()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(rename = "lastTransitionTime")]
    last_transition_time: Option<Time>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// Deserializes only the metadata that is used: the rest would be the larger part.
fn deserialize_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PartialMetadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let PartialMetadata { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations } =
        PartialMetadata::deserialize(deserializer)?;
    let rest = ObjectMeta::default();
    Ok(ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations, ..rest })
}

impl Pod {
    /// Extracts the fields that are used.
    pub(crate) fn from_object(pod: &PodObject) -> CacheItem<Self> {
        let name = NamespacedName::new(pod.namespace().unwrap_or_default(), pod.name_any());
        let version = pod.resource_version().unwrap_or_default();
        let ports = |annotation: &str| {
            let text = pod.annotations().get(annotation)?;
            let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
            let ports: Option<Vec<u16>> = text.split(',').map(port).collect();
            Some(ports.ok_or_else(|| format!("its annotation {annotation} is {text:?}: write a port")))
        };
        let router_for = pod.labels().get(ROUTER_POOL_LABEL).map(|pool| {
            let namespace = pod.annotations().get(ROUTER_NAMESPACE_ANNOTATION).unwrap_or(&name.namespace);
            NamespacedName::new(namespace, pool)
        });
        let watched_config_map =
            pod.annotations().get(ADAPTERS_ANNOTATION).map(|text| parse_watched_config_map(text, &name.namespace));
        let status = &pod.status;
        let value = Self {
            name: name.name.clone(),
            uid: pod.uid().unwrap_or_default(),
            ip: status.pod_ip.as_ref().and_then(|ip| ip.parse().ok()),
            ready: is_ready(status) && pod.metadata.deletion_timestamp.is_none(),
            unready_since: unready_since(status),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            finished: status.phase.as_deref().is_some_and(is_finished),
            container_ids: container_ids(status),
            config_maps: pod
                .spec
                .volumes
                .iter()
                .flatten()
                .flat_map(Volume::config_map_names)
                .map(str::to_owned)
                .collect(),
            watched_config_map,
            has_sidecar: pod.labels().contains_key(SIDECAR_LABEL),
            router_for,
            sidecar_ports: ports(SIDECAR_PORT_ANNOTATION),
            router_port: ports(ROUTER_PORT_ANNOTATION).map(|ports| ports.map(|ports| ports[0])),
        };
        CacheItem { name, version, value }
    }

    /// Returns whether the pod, in this namespace, mounts this ConfigMap or has a sidecar that watches it.
    pub(crate) fn reads_config_map(&self, namespace: &str, map: &NamespacedName) -> bool {
        let mounts = map.namespace == namespace && self.config_maps.contains(&map.name);
        mounts || self.watched_config_map.as_ref().is_some_and(|watched| watched.as_ref() == Ok(map))
    }
}

/// Parses the annotation of a pod in this namespace.
fn parse_watched_config_map(text: &str, namespace: &str) -> Result<NamespacedName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(format!("its annotation {ADAPTERS_ANNOTATION} is {text:?}: write NAME or NAMESPACE/NAME"));
    }
    Ok(NamespacedName::new(namespace, name))
}

fn is_ready(status: &PodStatus) -> bool {
    ready_condition(status).is_some_and(|condition| condition.status == "True")
}

fn unready_since(status: &PodStatus) -> Option<Timestamp> {
    let condition = ready_condition(status).filter(|condition| condition.status != "True")?;
    condition.last_transition_time.as_ref().map(|since| since.0)
}

fn ready_condition(status: &PodStatus) -> Option<&PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.kind == "Ready")
}

fn is_finished(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn container_ids(status: &PodStatus) -> String {
    let all = status.container_statuses.iter().flatten();
    let mut ids: Vec<&str> = all.filter_map(|container| container.container_id.as_deref()).collect();
    ids.sort_unstable();
    ids.join(",")
}

/// An InferencePool: its selector, and the ports on which each pod serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferencePool {
    /// Labels that the selector requires; never empty.
    pub labels: BTreeMap<String, String>,
    /// Ports of each pod; each of them is one server.
    pub target_ports: Vec<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InferencePoolSpec {
    selector: LabelSelector,
    #[serde(default)]
    target_ports: Vec<TargetPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LabelSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct TargetPort {
    number: u16,
}

impl InferencePool {
    /// Extracts the fields that are used; the error says why the pool cannot be used.
    pub(crate) fn from_object(object: &DynamicObject) -> CacheItem<Result<Self, String>> {
        let name = NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any());
        let version = object.resource_version().unwrap_or_default();
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let value =
            serde_json::from_value::<InferencePoolSpec>(spec).map_err(|error| error.to_string()).and_then(|spec| {
                let ports = spec.target_ports.into_iter().map(|port| port.number).collect();
                let labels = spec.selector.match_labels;
                // An empty selector would match every pod of the namespace.
                if labels.is_empty() {
                    Err("its selector is empty".to_owned())
                } else {
                    Ok(Self { labels, target_ports: ports })
                }
            });
        CacheItem { name, version, value }
    }

    /// Returns the selector in the syntax of a watch request.
    pub(crate) fn label_selector(&self) -> String {
        self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Returns a running pod without labels or annotations that matter.
    pub(crate) fn bare_pod(name: &str) -> Pod {
        pod_with(|pod| {
            pod["metadata"] = json!({ "name": name, "namespace": "prod", "uid": format!("uid of {name}") });
        })
    }

    fn pod_with(change: impl FnOnce(&mut Value)) -> Pod {
        let mut object = json!({
            "metadata": {
                "name": "vllm-0", "namespace": "prod", "uid": "u0", "resourceVersion": "5",
                "labels": {"app": "vllm"},
                "annotations": {"rollora.dev/sidecar-port": "8081"},
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {"name": "b", "containerID": "c://2", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                    {"name": "a", "containerID": "c://1", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                ],
            },
        });
        change(&mut object);
        Pod::from_object(&serde_json::from_value(object).unwrap()).value
    }

    #[test]
    fn pod_is_ready_by_its_condition_unless_terminating() {
        let ready = pod_with(|_| ());
        assert!(ready.ready && !ready.finished);
        assert_eq!(ready.container_ids, "c://1,c://2");
        assert_eq!(ready.sidecar_ports, Some(Ok(vec![8081])));
        assert!(!pod_with(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")).ready);
        assert!(!pod_with(|pod| pod["status"]["conditions"][0]["status"] = json!("False")).ready);
        assert!(!pod_with(|pod| pod["status"] = json!({})).ready);
        assert!(pod_with(|pod| pod["status"]["phase"] = json!("Failed")).finished);
    }

    #[test]
    fn config_maps_include_projected_volumes() {
        let pod = pod_with(|pod| {
            pod["spec"] = json!({ "volumes": [
                { "name": "a", "configMap": { "name": "adapters" } },
                { "name": "b", "emptyDir": {} },
                { "name": "c", "projected": { "sources": [
                    { "serviceAccountToken": { "path": "token" } }, { "configMap": { "name": "roots" } },
                ] } },
            ] });
        });
        assert_eq!(pod.config_maps, ["adapters", "roots"]);
    }

    #[test]
    fn pod_reads_mounted_and_annotated_config_maps() {
        let watching = |annotation: &str| {
            pod_with(|pod| {
                pod["metadata"]["labels"] = json!({ "rollora.dev/sidecar": "true" });
                pod["metadata"]["annotations"] = json!({ "rollora.dev/adapters": annotation });
                pod["spec"] = json!({ "volumes": [{ "name": "a", "configMap": { "name": "mounted" } }] });
            })
        };
        let reads = |pod: &Pod, namespace: &str, name: &str| {
            pod.reads_config_map("prod", &NamespacedName::new(namespace, name))
        };
        let here = watching("adapters");
        assert!(here.has_sidecar && reads(&here, "prod", "adapters") && reads(&here, "prod", "mounted"));
        assert!(!reads(&here, "test", "adapters") && !reads(&here, "test", "mounted"));
        let elsewhere = watching("test/adapters");
        assert!(reads(&elsewhere, "test", "adapters") && !reads(&elsewhere, "prod", "adapters"));
        for bad in ["", "/adapters", "test/", "a/b/c"] {
            let message = format!("its annotation rollora.dev/adapters is {bad:?}: write NAME or NAMESPACE/NAME");
            assert_eq!(watching(bad).watched_config_map, Some(Err(message)));
        }
        assert!(!pod_with(|_| ()).has_sidecar);
    }

    #[test]
    fn router_pool_is_in_own_namespace_unless_annotated() {
        let router = |annotations: Value| {
            pod_with(|pod| {
                pod["metadata"]["labels"] = json!({ "rollora.dev/router-for": "pool" });
                pod["metadata"]["annotations"] = annotations;
            })
        };
        assert_eq!(router(json!({})).router_for, Some(NamespacedName::new("prod", "pool")));
        let elsewhere = router(json!({ "rollora.dev/router-for-namespace": "models" }));
        assert_eq!(elsewhere.router_for, Some(NamespacedName::new("models", "pool")));
        let none =
            pod_with(|pod| pod["metadata"]["annotations"] = json!({ "rollora.dev/router-for-namespace": "models" }));
        assert_eq!(none.router_for, None);
    }

    #[test]
    fn invalid_port_annotation_is_an_error() {
        let pod = pod_with(|pod| pod["metadata"]["annotations"] = json!({"rollora.dev/router-port": "http"}));
        assert_eq!(pod.sidecar_ports, None);
        assert_eq!(
            pod.router_port,
            Some(Err("its annotation rollora.dev/router-port is \"http\": write a port".to_owned()))
        );
    }

    #[test]
    fn pool_with_empty_selector_is_invalid() {
        let parse = |spec: Value| {
            let object = json!({"metadata": {"name": "pool", "namespace": "prod"}, "spec": spec});
            InferencePool::from_object(&serde_json::from_value(object).unwrap()).value
        };
        let pool = parse(json!({
            "selector": {"matchLabels": {"app": "vllm", "size": "32b"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}],
        }))
        .unwrap();
        assert_eq!(pool.label_selector(), "app=vllm,size=32b");
        assert_eq!(pool.target_ports, [8000, 8001]);
        assert!(parse(json!({"selector": {}})).is_err());
        assert!(parse(json!({})).is_err());
    }
}
