//! Pods and pools, as little of them as is needed to know whom to ask.

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

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is said of a pod independently of the others")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its address; none before it has one.
    pub ip: Option<IpAddr>,
    /// Whether it is sent requests: its condition Ready is True, and it is not being deleted.
    pub ready: bool,
    /// Since when its condition Ready is not True; none where it is, or where nobody says that.
    pub unready_since: Option<Timestamp>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether all of its containers ended and will not be started again.
    pub finished: bool,
    /// The IDs of its containers: they change with every restart.
    pub container_ids: String,
    /// The ConfigMaps that it mounts.
    pub config_maps: Vec<String>,
    /// The ConfigMap that its sidecars watch, where it says so; or why that cannot be read.
    pub watched_config_map: Option<Result<NamespacedName, String>>,
    /// Whether it says that a sidecar runs in it.
    pub has_sidecar: bool,
    /// The pool that it routes for, where it is a router.
    pub router_for: Option<NamespacedName>,
    /// The ports of its sidecars, in the order of the pool's target ports, where it says so; or why that cannot be read.
    pub sidecar_ports: Option<Result<Vec<u16>, String>>,
    /// The port of its router, where it says so; or why that cannot be read.
    pub router_port: Option<Result<u16, String>>,
}

/// A pod as the API server tells of it, as far as it is read here: a whole one is many times as large, and a list has
/// hundreds.
#[derive(Debug, Clone, Resource, Deserialize)]
#[resource(inherit = "KubePod")]
pub(crate) struct PodObject {
    #[serde(deserialize_with = "metadata")]
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
    /// The ConfigMaps that are mounted here, itself or among others.
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

/// The rest of the metadata would be the larger part.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let Part { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations } =
        Part::deserialize(deserializer)?;
    let rest = ObjectMeta::default();
    Ok(ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations, ..rest })
}

impl Pod {
    /// What is needed of a pod.
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
        let watches =
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
            watched_config_map: watches,
            has_sidecar: pod.labels().contains_key(SIDECAR_LABEL),
            router_for,
            sidecar_ports: ports(SIDECAR_PORT_ANNOTATION),
            router_port: ports(ROUTER_PORT_ANNOTATION).map(|ports| ports.map(|ports| ports[0])),
        };
        CacheItem { name, version, value }
    }

    /// Whether a pod of this namespace reads this ConfigMap: it mounts it, or says that a sidecar of it watches it.
    pub(crate) fn reads_config_map(&self, namespace: &str, map: &NamespacedName) -> bool {
        let mounts = map.namespace == namespace && self.config_maps.contains(&map.name);
        mounts || self.watched_config_map.as_ref().is_some_and(|watched| watched.as_ref() == Ok(map))
    }
}

/// The ConfigMap that is named so in a pod of this namespace.
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

/// An InferencePool: which pods are in it, and which ports of theirs are servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferencePool {
    /// Labels that its pods have.
    pub labels: BTreeMap<String, String>,
    /// The ports of each pod, each of them a server.
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
    /// What is needed of a pool; where it cannot be read, why.
    pub(crate) fn from_object(object: &DynamicObject) -> CacheItem<Result<Self, String>> {
        let name = NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any());
        let version = object.resource_version().unwrap_or_default();
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let value =
            serde_json::from_value::<InferencePoolSpec>(spec).map_err(|error| error.to_string()).and_then(|spec| {
                let ports = spec.target_ports.into_iter().map(|port| port.number).collect();
                let labels = spec.selector.match_labels;
                // Without a label it would be every pod of the namespace.
                if labels.is_empty() {
                    Err("its selector is empty".to_owned())
                } else {
                    Ok(Self { labels, target_ports: ports })
                }
            });
        CacheItem { name, version, value }
    }

    /// The selector as a watch takes it.
    pub(crate) fn label_selector(&self) -> String {
        self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod that runs, and of which nothing is said.
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
    fn a_pod_is_ready_when_its_condition_says_so_and_nobody_deletes_it() {
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
    fn a_pod_mounts_a_config_map_by_itself_or_among_others() {
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
    fn a_pod_reads_what_it_mounts_and_what_it_says_that_it_watches() {
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
            let words = format!("its annotation rollora.dev/adapters is {bad:?}: write NAME or NAMESPACE/NAME");
            assert_eq!(watching(bad).watched_config_map, Some(Err(words)));
        }
        assert!(!pod_with(|_| ()).has_sidecar);
    }

    #[test]
    fn a_router_routes_for_a_pool_beside_it_unless_it_says_another_namespace() {
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
    fn a_port_that_is_none_is_said_in_words() {
        let pod = pod_with(|pod| pod["metadata"]["annotations"] = json!({"rollora.dev/router-port": "http"}));
        assert_eq!(pod.sidecar_ports, None);
        assert_eq!(
            pod.router_port,
            Some(Err("its annotation rollora.dev/router-port is \"http\": write a port".to_owned()))
        );
    }

    #[test]
    fn a_pool_selects_by_labels_and_never_everything() {
        let read = |spec: Value| {
            let object = json!({"metadata": {"name": "pool", "namespace": "prod"}, "spec": spec});
            InferencePool::from_object(&serde_json::from_value(object).unwrap()).value
        };
        let pool = read(json!({
            "selector": {"matchLabels": {"app": "vllm", "size": "32b"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}],
        }))
        .unwrap();
        assert_eq!(pool.label_selector(), "app=vllm,size=32b");
        assert_eq!(pool.target_ports, [8000, 8001]);
        assert!(read(json!({"selector": {}})).is_err());
        assert!(read(json!({})).is_err());
    }
}
