//! The sidecar in the place of the retired lora-syncer: pods that were set up for that one, with nothing but the image
//! changed.

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

/// The model servers as users of lora-syncer have them: a native sidecar without a flag, the ConfigMap at `/config`,
/// vLLM probed at its own `/health`.
///
/// Pods of the bed share a network and a file system. What follows from that, and would not be there on a cluster, are
/// three variables that say where vLLM, the file and the own address are.
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

/// The value that each sidecar's old gauge has for an adapter.
async fn status_gauges(bed: &Harness<ClusterEnvironment>, id: &str) -> Result<Vec<Option<String>>> {
    let series = format!("lora_syncer_adapter_status{{adapter_name=\"{id}\"}}");
    let mut values = Vec::new();
    for sidecar in bed.environment.containers("vllm-qwen3-32b", "lora-adapter-syncer") {
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
fn a_lora_syncer_whose_image_alone_was_changed_loads_what_the_file_says() {
    if !cluster_tools_available("the sidecar in the place of lora-syncer") {
        return;
    }
    // Nobody but the sidecars works here: no operator, so no key of its own in the ConfigMap.
    let parts = async || {
        Ok(ClusterOptions {
            manifests: vec!["ext-proc", "vllm"],
            projection_delay: Duration::from_secs(1),
            patch_manifests: Box::new(use_lora_syncer_layout),
            ..ClusterOptions::default()
        })
    };
    run_on_cluster(&Setup::guide(Duration::ZERO), parts, async |bed| {
        bed.wait_for(loaded_everywhere(V1).and(all_servers_ready())).await?;
        bed.list_adapter(V2).await?;
        bed.wait_for(loaded_everywhere(V1).and(loaded_everywhere(V2))).await?;
        for id in [V1, V2] {
            let values = status_gauges(bed, id).await?;
            ensure!(values.iter().all(|value| value.as_deref() == Some("1")), "the gauge of {id} is {values:?}");
        }
        let listed = status_gauges(bed, MODEL).await?;
        ensure!(listed.iter().all(Option::is_none), "a gauge of what nobody listed: {listed:?}");

        // A server that starts again has forgotten everything, and gets it back.
        bed.kill_server(0);
        bed.start_server(0).await?;
        bed.wait_for(loaded_everywhere(V1).and(loaded_everywhere(V2)).and(all_servers_ready())).await?;
        Ok(())
    });
}
