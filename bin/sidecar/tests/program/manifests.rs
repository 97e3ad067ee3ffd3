//! Tests of the shipped manifests: the privileges of Rollora's containers, and how a pod runs the sidecar.

use serde_json::{Value, json};
use std::{fs, path::Path};

/// Returns the pod spec of every Deployment below `manifests`, with its file.
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

/// Returns the containers of a pod that run one of Rollora's images.
fn own_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&pod["initContainers"], &pod["containers"]];
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.filter(|container| container["image"].as_str().is_some_and(|image| image.starts_with("rollora-")))
}

#[test]
fn own_containers_have_minimal_privileges() {
    let deployments = deployments();
    let mut images = Vec::new();
    for (file, pod) in &deployments {
        for container in own_containers(pod) {
            let location = format!("{file}: {}", container["name"]);
            let own = &container["securityContext"];
            // A container inherits what it does not set from its pod.
            let setting = |name: &str| if own[name].is_null() { &pod["securityContext"][name] } else { &own[name] };
            assert_eq!(setting("runAsNonRoot"), true, "{location}");
            assert!(setting("runAsUser").as_u64().is_some_and(|user| user > 0), "{location}");
            assert_eq!(*setting("seccompProfile"), json!({ "type": "RuntimeDefault" }), "{location}");
            assert_eq!(own["allowPrivilegeEscalation"], false, "{location}");
            assert_eq!(own["readOnlyRootFilesystem"], true, "{location}");
            assert_eq!(own["capabilities"], json!({ "drop": ["ALL"] }), "{location}");
            assert!(own["privileged"].is_null() && pod["hostNetwork"].is_null(), "{location}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{location}");
            assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez", "{location}");
            images.push(container["image"].as_str().unwrap().to_owned());
        }
    }
    images.sort();
    images.dedup();
    assert_eq!(images, ["rollora-ext-proc", "rollora-operator", "rollora-sidecar"]);
}

#[test]
fn sidecar_is_native_and_answers_the_readiness_probe_of_vllm() {
    let deployments = deployments();
    let (file, pod) =
        deployments.iter().find(|(_, pod)| own_containers(pod).any(|c| c["image"] == "rollora-sidecar")).unwrap();
    let init = pod["initContainers"].as_array().unwrap();
    let sidecar = init.iter().find(|container| container["image"] == "rollora-sidecar").unwrap();
    assert_eq!(sidecar["restartPolicy"], "Always", "{file}");
    // The start of vLLM must not wait for the sidecar, which answers before vLLM does.
    assert!(sidecar["startupProbe"].is_null());
    let vllm = &pod["containers"][0];
    let ready = &vllm["readinessProbe"];
    assert_eq!((&ready["httpGet"]["path"], &ready["httpGet"]["port"]), (&json!("/readyz"), &json!(8080)));
    assert_eq!((&ready["periodSeconds"], &ready["failureThreshold"]), (&json!(1), &json!(1)));
    // Without a watch, the sidecar needs no access to the API.
    assert_eq!(pod["automountServiceAccountToken"], false);
    let mount_at = |name: &str| {
        let mounts = sidecar["volumeMounts"].as_array().unwrap();
        mounts
            .iter()
            .find(|mount| mount["mountPath"] == name)
            .unwrap_or_else(|| panic!("no volume is mounted at {name}"))
    };
    assert!(mount_at("/config")["subPath"].is_null() && mount_at("/config")["readOnly"] == true);
    assert!(mount_at("/state")["readOnly"].is_null());
}

#[test]
fn watch_role_may_read_only_one_configmap() {
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
