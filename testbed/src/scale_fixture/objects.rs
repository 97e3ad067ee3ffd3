//! Names, addresses and objects of the scale fixture. All are derived from the number of a pool and the number in it.

use anyhow::{Context as _, Result};
use rollora_api::{
    names::{ROUTER_POOL_LABEL, ROUTER_PORT_ANNOTATION, SIDECAR_PORT_ANNOTATION},
    operator_directives::OperatorDirectives,
};
use serde_json::{Value, json};
use std::{fmt::Write as _, net::Ipv4Addr};

/// Number of pools that share a namespace.
const POOLS_PER_NAMESPACE: u16 = 10;
/// Router replicas of each pool.
pub(super) const ROUTERS_PER_POOL: u8 = 2;
/// Index of a pool's first router; the indexes below belong to its servers.
const FIRST_ROUTER_INDEX: u8 = 200;
/// Maximum number of servers in a pool.
pub(super) const MAX_SERVERS_PER_POOL: u8 = FIRST_ROUTER_INDEX;

pub(super) fn namespace(pool: u16) -> String {
    format!("team-{:03}", pool / POOLS_PER_NAMESPACE)
}

pub(super) fn pool_name(pool: u16) -> String {
    format!("pool-{pool:04}")
}

pub(super) fn config_map_name(pool: u16) -> String {
    format!("pool-{pool:04}-adapters")
}

/// Returns the name of a Rollout, of its model and of its rewrite.
pub(super) fn rollout_name(pool: u16, number: u16) -> String {
    format!("lora-{pool:04}-{number}")
}

pub(super) fn adapter_id(pool: u16, number: u16, version: u16) -> String {
    format!("{}-v{version}", rollout_name(pool, number))
}

/// Parses the pool's number from the name of one of its objects.
pub(super) fn pool_from_name(name: &str) -> Option<u16> {
    name.split('-').nth(1)?.parse().ok()
}

/// A pod of the fixture, identified by pool, role and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FixturePod {
    pub(super) pool: u16,
    pub(super) role: PodRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodRole {
    Server(u8),
    Router(u8),
}

impl FixturePod {
    pub(super) fn name(self) -> String {
        let pool = pool_name(self.pool);
        match self.role {
            PodRole::Server(number) => format!("{pool}-{number}"),
            PodRole::Router(number) => format!("{pool}-router-{number}"),
        }
    }

    pub(super) fn address(self) -> Ipv4Addr {
        let [high, low] = self.pool.to_be_bytes();
        let last = match self.role {
            PodRole::Server(number) => number,
            PodRole::Router(number) => FIRST_ROUTER_INDEX + number,
        };
        Ipv4Addr::new(127, high + 1, low, last + 1)
    }

    /// Returns the pod that has this address.
    pub(super) fn from_address(address: Ipv4Addr) -> Option<Self> {
        let [_, high, low, last] = address.octets();
        let (high, last) = (high.checked_sub(1)?, last.checked_sub(1)?);
        let role =
            if last < FIRST_ROUTER_INDEX { PodRole::Server(last) } else { PodRole::Router(last - FIRST_ROUTER_INDEX) };
        Some(Self { pool: u16::from_be_bytes([high, low]), role })
    }

    /// Returns the object of a running pod, about as large as that of a real pod.
    pub(super) fn object(self, port: u16, uid: &str) -> Value {
        let (app, pool) = (pool_name(self.pool), self.pool);
        let (labels, annotation) = match self.role {
            PodRole::Server(_) => (json!({ "app": app }), SIDECAR_PORT_ANNOTATION),
            PodRole::Router(_) => (json!({ ROUTER_POOL_LABEL: app }), ROUTER_PORT_ANNOTATION),
        };
        let time = "2026-01-01T00:00:00Z";
        let container = |name: &str| {
            json!({
                "name": name,
                "image": format!("registry.example/{name}:v1.0.0"),
                "args": (0..12).map(|number| format!("--some-flag-{number}=value-{number}")).collect::<Vec<_>>(),
                "env": (0..8).map(|number| json!({
                    "name": format!("VARIABLE_{number}"), "value": format!("value-{number}"),
                })).collect::<Vec<_>>(),
                "resources": { "limits": { "cpu": "4", "memory": "32Gi" }, "requests": { "cpu": "1", "memory": "8Gi" } },
                "volumeMounts": [{ "name": "adapters", "mountPath": "/adapters", "readOnly": true }],
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            })
        };
        let state = |name: &str| {
            json!({
                "name": name, "ready": true, "restartCount": 0, "started": true,
                "image": format!("registry.example/{name}:v1.0.0"),
                "imageID": format!("registry.example/{name}@sha256:{uid}"),
                "containerID": format!("containerd://{name}-{uid}"),
                "state": { "running": { "startedAt": time } },
            })
        };
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": time });
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
        let fields = json!({
            "f:metadata": { "f:labels": { ".": {}, "f:app": {} }, "f:annotations": { ".": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"vllm\"}": { ".": {}, "f:args": {}, "f:env": {}, "f:image": {} } } },
        });
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name(), "namespace": namespace(pool), "uid": uid, "creationTimestamp": time,
                "labels": labels, "annotations": { annotation: port.to_string() },
                "managedFields": [{
                    "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": time,
                    "fieldsType": "FieldsV1", "fieldsV1": fields,
                }],
            },
            "spec": {
                "containers": [container("vllm"), container("rollora-sidecar")],
                "volumes": [{ "name": "adapters", "configMap": { "name": config_map_name(pool), "defaultMode": 420 } }],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "nodeName": format!("node-{:03}", pool % 100), "securityContext": {}, "schedulerName": "default-scheduler",
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable", "startTime": time,
                "podIP": self.address().to_string(), "podIPs": [{ "ip": self.address().to_string() }],
                "conditions": conditions,
                "containerStatuses": [state("vllm"), state("rollora-sidecar")],
            },
        })
    }
}

pub(super) fn namespace_object(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

pub(super) fn pool_object(pool: u16) -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": { "name": pool_name(pool), "namespace": namespace(pool) },
        "spec": {
            "selector": { "matchLabels": { "app": pool_name(pool) } },
            "targetPorts": [{ "number": 8000 }],
            "endpointPickerRef": { "name": "picker", "port": { "number": 9002 } },
        },
    })
}

/// Returns the adapters ConfigMap with `versions` versions of each adapter, and with the operator directives.
pub(super) fn config_map_object(
    pool: u16,
    rollouts: u16,
    versions: u16,
    directives: Option<&OperatorDirectives>,
) -> Value {
    let mut text = String::from("vLLMLoRAConfig:\n  name: bench\n  ensureExist:\n    models:\n");
    for (number, version) in (0..rollouts).flat_map(|number| (1..=versions).map(move |version| (number, version))) {
        let id = adapter_id(pool, number, version);
        // Writing to a String cannot fail.
        writeln!(text, "    - id: {id}\n      source: /adapters/{id}").ok();
    }
    let mut data = json!({ "configmap.yaml": text });
    if let Some(directives) = directives {
        data[rollora_api::names::DIRECTIVES_KEY] = json!(directives.to_yaml());
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": config_map_name(pool), "namespace": namespace(pool) },
        "data": data,
    })
}

pub(super) fn rollout_object(pool: u16, number: u16) -> Value {
    json!({
        "apiVersion": rollora_api::names::API_VERSION,
        "kind": "Rollout",
        "metadata": { "name": rollout_name(pool, number), "namespace": namespace(pool) },
        "spec": {
            "model": rollout_name(pool, number),
            "poolRef": { "name": pool_name(pool) },
            "adapter": { "id": adapter_id(pool, number, 1) },
            "adaptersRef": { "name": config_map_name(pool), "key": "configmap.yaml" },
            "strategy": { "steps": [
                { "setWeight": 10 }, { "pause": { "duration": "10m" } }, { "setWeight": 50 }, { "pause": {} },
            ] },
            "cleanup": { "policy": "Keep", "delay": "0s", "quietFor": "0s" },
        },
    })
}

/// A Rollout that succeeded, its rewrite and its directives; others are derived from it.
#[derive(Debug, Clone)]
pub(super) struct RolloutTemplate {
    pub(super) status: Value,
    pub(super) rewrite: Value,
    pub(super) directives: OperatorDirectives,
    pub(super) rollout_uid: String,
    pub(super) rewrite_uid: String,
}

impl RolloutTemplate {
    /// Returns the rewrite of another Rollout.
    pub(super) fn rewrite(&self, (pool, number): (u16, u16), rollout_uid: &str) -> Result<Value> {
        let mut rewrite = substitute(&self.rewrite, (pool, number), &[(&self.rollout_uid, rollout_uid)])?;
        let metadata = rewrite["metadata"].as_object_mut().context("a rewrite without metadata")?;
        for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"] {
            metadata.remove(field);
        }
        metadata.insert("namespace".to_owned(), json!(namespace(pool)));
        Ok(rewrite)
    }

    /// Returns the status of another Rollout, with an observed generation that forces a reconcile to write it.
    pub(super) fn status(&self, lora: (u16, u16), rollout_uid: &str, rewrite_uid: &str) -> Result<Value> {
        let uids = [(self.rollout_uid.as_str(), rollout_uid), (self.rewrite_uid.as_str(), rewrite_uid)];
        let mut status = substitute(&self.status, lora, &uids)?;
        status["observedGeneration"] = json!(0);
        Ok(status)
    }

    /// Returns the operator directives of a pool.
    pub(super) fn directives(&self, pool: u16, rollouts: u16) -> Result<OperatorDirectives> {
        let mut all = OperatorDirectives::default();
        for number in 0..rollouts {
            all.extend(serde_json::from_value(substitute(&json!(self.directives), (pool, number), &[])?)?);
        }
        Ok(all)
    }
}

/// Replaces the names and UIDs of the template, which is the first Rollout of the first pool.
fn substitute(value: &Value, (pool, number): (u16, u16), uids: &[(&str, &str)]) -> Result<Value> {
    let text = value
        .to_string()
        .replace(&rollout_name(0, 0), &rollout_name(pool, number))
        .replace(&pool_name(0), &pool_name(pool));
    let text = uids.iter().fold(text, |text, (from, to)| text.replace(from, to));
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_a_unique_reversible_address() {
        for pool in [0, 1, 255, 256, 499, 5000] {
            for role in [
                PodRole::Server(0),
                PodRole::Server(MAX_SERVERS_PER_POOL - 1),
                PodRole::Router(0),
                PodRole::Router(ROUTERS_PER_POOL - 1),
            ] {
                let pod = FixturePod { pool, role };
                assert!(pod.address().is_loopback());
                assert_eq!(FixturePod::from_address(pod.address()), Some(pod));
            }
        }
    }

    #[test]
    fn pool_is_parsed_from_object_names() {
        for name in [pool_name(42), config_map_name(42), rollout_name(42, 7), adapter_id(42, 7, 2)] {
            assert_eq!(pool_from_name(&name), Some(42), "{name}");
        }
    }

    #[test]
    fn template_substitution_leaves_no_original_names() {
        let template = RolloutTemplate {
            status: json!({ "message": "lora-0000-0-v1 serves all requests on pool-0000-3", "rewrite": { "uid": "w0" } }),
            rewrite: json!({ "metadata": { "name": "lora-0000-0", "uid": "w0", "annotations": { "weights/r0": "1" } } }),
            directives: OperatorDirectives {
                managed: vec!["lora-0000-0-v1".to_owned()],
                ..OperatorDirectives::default()
            },
            rollout_uid: "r0".to_owned(),
            rewrite_uid: "w0".to_owned(),
        };
        let status = template.status((42, 7), "r1", "w1").unwrap();
        assert_eq!(status["message"], "lora-0042-7-v1 serves all requests on pool-0042-3");
        assert_eq!(status["rewrite"]["uid"], "w1");
        let rewrite = template.rewrite((42, 7), "r1").unwrap();
        let expected = json!({ "name": "lora-0042-7", "annotations": { "weights/r1": "1" }, "namespace": "team-004" });
        assert_eq!(rewrite["metadata"], expected);
        assert_eq!(template.directives(42, 2).unwrap().managed, ["lora-0042-0-v1", "lora-0042-1-v1"]);
    }
}
