//! Changes to the manifests as in a user's overlay, and Envoy's backends as the manifests define them.

use super::{EXT_PROC_DEPLOYMENT, VLLM_DEPLOYMENT};
use crate::harness::Setup;
use anyhow::{Context as _, Result};
use rollora_testbed::{
    endpoint_picker::EndpointPicker,
    gateway::EnvoyBackend,
    guide::{ADAPTERS_CONFIG_MAP, POOL},
    manifests::{Manifests, push_value},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Applies a setup to the manifests, as a user's overlay would.
pub(super) fn apply_setup(objects: &mut Manifests, setup: &Setup, namespace: &str, hub: Option<&str>) -> Result<()> {
    let adapters: Value = serde_saphyr::from_str(&setup.adapters_yaml())?;
    objects.object_mut("ConfigMap", ADAPTERS_CONFIG_MAP)?["data"] = adapters["data"].clone();
    let vllm = objects.object_mut("Deployment", VLLM_DEPLOYMENT)?;
    vllm["spec"]["replicas"] = json!(setup.servers.len());
    let spec = &mut vllm["spec"]["template"]["spec"];
    // The default of half a minute is longer than a scenario.
    let sidecar = &mut spec["initContainers"][0];
    push_value(&mut sidecar["args"], json!("--unload-grace=300ms"))?;
    if let Some(hub) = hub {
        push_value(&mut sidecar["env"], json!({ "name": "HF_ENDPOINT", "value": hub }))?;
    } else {
        let args = sidecar["args"].as_array_mut().context("a sidecar without flags")?;
        args.retain(|arg| arg.as_str().is_some_and(|arg| !arg.starts_with("--adapters-dir")));
    }
    if let Some(key) = &setup.api_key {
        let variable = json!({
            "name": "VLLM_API_KEY",
            "valueFrom": { "secretKeyRef": { "name": "vllm-api-key", "key": "key" } },
        });
        push_value(&mut spec["initContainers"][0]["env"], variable.clone())?;
        push_value(&mut spec["containers"][0]["env"], variable)?;
        objects.objects.push(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "vllm-api-key", "namespace": namespace },
            "stringData": { "key": key },
        }));
    }
    Ok(())
}

/// Returns the pods behind Envoy's clusters, as the InferencePool and the Services select them.
pub(super) fn envoy_backends(objects: &Manifests, picker: Option<&EndpointPicker>) -> Result<Vec<EnvoyBackend>> {
    let find = |kind: &str, name: &str| {
        let found = objects.objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.with_context(|| format!("the manifests have no {kind} {name}"))
    };
    let labels = |value: &Value| serde_json::from_value::<BTreeMap<String, String>>(value.clone());
    let port = |value: &Value| value.as_u64().and_then(|port| port.try_into().ok()).context("no port");
    let pool = find("InferencePool", POOL)?;
    let mut backends = vec![EnvoyBackend {
        cluster: "vllm",
        labels: labels(&pool["spec"]["selector"]["matchLabels"])?,
        port: port(&pool["spec"]["targetPorts"][0]["number"])?,
    }];
    if picker.is_none_or(|picker| !picker.replaces_ext_proc()) {
        let service = find("Service", EXT_PROC_DEPLOYMENT)?;
        backends.push(EnvoyBackend {
            cluster: "rollora-ext-proc",
            labels: labels(&service["spec"]["selector"])?,
            port: port(&service["spec"]["ports"][0]["port"])?,
        });
    }
    backends.extend(picker.map(EndpointPicker::backend));
    Ok(backends)
}
