//! The sidecar as a replacement for the retired lora-syncer: pods that were configured for lora-syncer, with only the
//! image changed.

use anyhow::{Result, ensure};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{all_servers_ready, loaded_everywhere},
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    http::{self, ListenAddress},
    manifests::Manifests,
};
use serde_json::json;
use std::time::Duration;

/// Changes the model servers to the layout of lora-syncer's users: a native sidecar without flags, the ConfigMap at
/// `/config`, and vLLM probed at its own `/health`.
///
/// Pods of the testbed share a network and a file system. For that reason alone, and unlike on a cluster, three
/// variables set the address of vLLM, the path of the file and the sidecar's own address.
fn use_lora_syncer_layout(objects: &mut Manifests) -> Result<()> {
    let spec = &mut objects.object_mut("Deployment", "vllm-qwen3-32b")?["spec"]["template"]["spec"];
    let ip = |name: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } });
    spec["initContainers"] = json!([{
        "name": "lora-adapter-syncer",
        "tty": true,
        "stdin": true,
        "image": "rollora-sidecar",
        "restartPolicy": "Always",
        "imagePullPolicy": "Always",
        "env": [
            { "name": "DYNAMIC_LORA_ROLLOUT_CONFIG", "value": "/config/configmap.yaml" },
            ip("POD_IP"),
            ip("ROLLORA_VLLM_HOST"),
        ],
        "volumeMounts": [{ "name": "config-volume", "mountPath": "/config" }],
    }]);
    spec["volumes"] = json!([{ "name": "config-volume", "configMap": { "name": "vllm-qwen3-32b-adapters" } }]);
    let vllm = &mut spec["containers"][0];
    vllm["volumeMounts"] = json!([]);
    vllm["readinessProbe"] = json!({ "httpGet": { "path": "/health", "port": "http" }, "periodSeconds": 1 });
    Ok(())
}

/// Returns the value of each sidecar's lora-syncer gauge for an adapter; `None` if the gauge has no such series.
async fn status_gauges(harness: &Harness<ClusterEnvironment>, id: &str) -> Result<Vec<Option<String>>> {
    let series = format!("lora_syncer_adapter_status{{adapter_name=\"{id}\"}}");
    let mut values = Vec::new();
    for sidecar in harness.environment.containers("vllm-qwen3-32b", "lora-adapter-syncer") {
        let address = ListenAddress::Tcp((sidecar.address(), 8080).into());
        let (_, text) = http::send_request(&address, http::request("GET", "/metrics", None)).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.trim().to_owned());
        values.push(value);
    }
    ensure!(values.len() == 3, "{} sidecars", values.len());
    Ok(values)
}

#[test]
fn lora_syncer_pod_works_with_only_the_image_changed() {
    if !cluster_tools_available("the sidecar in the place of lora-syncer") {
        return;
    }
    // Only sidecars work here: without an operator the ConfigMap has no directives.
    let options = async || {
        Ok(ClusterOptions {
            manifests: vec!["ext-proc", "vllm"],
            projection_delay: Duration::from_secs(1),
            patch_manifests: Box::new(use_lora_syncer_layout),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&Setup::guide(Duration::ZERO), options, async |harness| {
        harness.wait_for(loaded_everywhere(V1).and(all_servers_ready())).await?;
        harness.list_adapter(V2).await?;
        harness.wait_for(loaded_everywhere(V1).and(loaded_everywhere(V2))).await?;
        for id in [V1, V2] {
            let values = status_gauges(harness, id).await?;
            ensure!(values.iter().all(|value| value.as_deref() == Some("1")), "the gauge of {id} is {values:?}");
        }
        let listed = status_gauges(harness, MODEL).await?;
        ensure!(listed.iter().all(Option::is_none), "an unlisted model has a gauge: {listed:?}");

        // A restarted server has no adapters; the sidecar loads them again.
        harness.kill_server(0);
        harness.start_server(0).await?;
        harness.wait_for(loaded_everywhere(V1).and(loaded_everywhere(V2)).and(all_servers_ready())).await?;
        Ok(())
    });
}
