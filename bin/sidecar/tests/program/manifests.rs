//! The manifests that we ship: what our own containers may do, and what the sidecar asks of a pod.

use serde_json::{Value, json};
use std::{fs, path::Path};

/// Every Deployment below `manifests`, with its file.
fn deployments() -> Vec<(String, Value)> {
    let mut folders = vec![Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests")).to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "deployment.yaml") {
                let object: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
                assert_eq!(object["kind"], "Deployment", "{}", path.display());
                found.push((path.display().to_string(), object["spec"]["template"]["spec"].clone()));
            }
        }
    }
    found
}

/// The containers of a pod whose image is ours.
fn own_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&pod["initContainers"], &pod["containers"]];
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.filter(|container| container["image"].as_str().is_some_and(|image| image.starts_with("rollora-")))
}

#[test]
fn every_container_of_ours_is_as_small_as_a_container_can_be() {
    let deployments = deployments();
    let mut images = Vec::new();
    for (file, pod) in &deployments {
        for container in own_containers(pod) {
            let place = format!("{file}: {}", container["name"]);
            let own = &container["securityContext"];
            // What a container does not say is what its pod says.
            let said = |name: &str| if own[name].is_null() { &pod["securityContext"][name] } else { &own[name] };
            assert_eq!(said("runAsNonRoot"), true, "{place}");
            assert!(said("runAsUser").as_u64().is_some_and(|user| user > 0), "{place}");
            assert_eq!(*said("seccompProfile"), json!({ "type": "RuntimeDefault" }), "{place}");
            assert_eq!(own["allowPrivilegeEscalation"], false, "{place}");
            assert_eq!(own["readOnlyRootFilesystem"], true, "{place}");
            assert_eq!(own["capabilities"], json!({ "drop": ["ALL"] }), "{place}");
            assert!(own["privileged"].is_null() && pod["hostNetwork"].is_null(), "{place}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{place}");
            assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez", "{place}");
            images.push(container["image"].as_str().unwrap().to_owned());
        }
    }
    images.sort();
    images.dedup();
    assert_eq!(images, ["rollora-ext-proc", "rollora-operator", "rollora-sidecar"]);
}

#[test]
fn the_sidecar_is_a_native_one_and_answers_for_vllm() {
    let deployments = deployments();
    let (file, pod) =
        deployments.iter().find(|(_, pod)| own_containers(pod).any(|c| c["image"] == "rollora-sidecar")).unwrap();
    let init = pod["initContainers"].as_array().unwrap();
    let sidecar = init.iter().find(|container| container["image"] == "rollora-sidecar").unwrap();
    assert_eq!(sidecar["restartPolicy"], "Always", "{file}");
    // vLLM's start may not wait for it: it answers before vLLM does.
    assert!(sidecar["startupProbe"].is_null());
    let vllm = &pod["containers"][0];
    let ready = &vllm["readinessProbe"];
    assert_eq!((&ready["httpGet"]["path"], &ready["httpGet"]["port"]), (&json!("/readyz"), &json!(8080)));
    assert_eq!((&ready["periodSeconds"], &ready["failureThreshold"]), (&json!(1), &json!(1)));
    // Without the watch it needs nothing of the API.
    assert_eq!(pod["automountServiceAccountToken"], false);
    let folder = |name: &str| {
        let mounts = sidecar["volumeMounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["mountPath"] == name).unwrap_or_else(|| panic!("nothing at {name}"))
    };
    assert!(folder("/config")["subPath"].is_null() && folder("/config")["readOnly"] == true);
    assert!(folder("/state")["readOnly"].is_null());
}

#[test]
fn the_role_of_the_watch_reads_one_config_map_and_nothing_else() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/vllm-watch/role.yaml");
    let text = fs::read_to_string(file).unwrap();
    let role = text.split("---").next().unwrap();
    let role: Value = serde_saphyr::from_str(role).unwrap();
    assert_eq!(role["kind"], "Role");
    let expected = json!({
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["vllm-qwen3-32b-adapters"],
        "verbs": ["get", "list", "watch"],
    });
    assert_eq!(role["rules"], json!([expected]));
}
