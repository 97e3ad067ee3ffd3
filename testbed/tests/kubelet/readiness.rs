//! Readiness and status of pods.

use crate::fixture::{KubeletFixture, condition_status, first_container_status, is_ready, now, phase, shell_container};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    http::{ListenAddress, request, send_request},
    process::ExitReason,
};
use serde_json::{Value, json};
use std::{net::IpAddr, time::Duration};

fn vllm_pod_spec() -> Value {
    json!({ "containers": [{
        "name": "vllm",
        "image": "vllm-sim",
        "args": ["--host=$(POD_IP)", "--port=8000"],
        "env": [{ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
        "ports": [{ "name": "http", "containerPort": 8000 }],
        "readinessProbe": {
            "httpGet": { "path": "/health", "port": "http" },
            "periodSeconds": 1, "failureThreshold": 1,
        },
    }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_share_a_port_on_addresses_of_their_own() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let mut addresses = Vec::new();
    for name in ["vllm-0", "vllm-1"] {
        fixture.create_pod(name, vllm_pod_spec()).await?;
    }
    for name in ["vllm-0", "vllm-1"] {
        let pod = fixture.wait_for_pod(name, "ready", is_ready).await?;
        ensure!(phase(&pod) == "Running" && condition_status(&pod, "ContainersReady").as_deref() == Some("True"));
        let ip: IpAddr = pod.status.and_then(|status| status.pod_ip).context("the pod has no address")?.parse()?;
        ensure!(ip.is_loopback());
        let (status, _) = send_request(&ListenAddress::Tcp((ip, 8000).into()), request("GET", "/health", None)).await?;
        ensure!(status == 200, "{status}");
        addresses.push(ip);
    }
    ensure!(addresses[0] != addresses[1], "both pods have the address {:?}", addresses[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_container_makes_its_pod_unready_and_restarts() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.create_pod("vllm-0", vllm_pod_spec()).await?;
    let before = fixture.wait_for_pod("vllm-0", "ready", is_ready).await?;
    let container = fixture.kubelet.container("vllm-0", "vllm").await?;

    container.kill_and_hold();
    ensure!(!container.is_running() && container.is_held());
    let dead = fixture.wait_for_pod("vllm-0", "not ready", |pod| !is_ready(pod)).await?;
    let last = first_container_status(&dead)?;
    ensure!(!last.ready && phase(&dead) == "Running", "{dead:?}");
    // Timestamps in objects have a resolution of one second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    ensure!(!container.is_running(), "a held container must not restart");

    container.release();
    let after = fixture.wait_for_pod("vllm-0", "ready again", is_ready).await?;
    let (one, two) = (first_container_status(&before)?, first_container_status(&after)?);
    ensure!((one.restart_count, two.restart_count) == (0, 1));
    ensure!(one.container_id.is_some() && one.container_id != two.container_id, "the container id must change");
    let ended = two.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = ended.context("the status has no last termination")?;
    ensure!((ended.exit_code, ended.signal) == (137, Some(9)), "{ended:?}");
    let ip = |pod: &k8s_openapi::api::core::v1::Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    ensure!(ip(&before) == ip(&after), "a restart changed the pod's address");
    let since = |pod: &k8s_openapi::api::core::v1::Pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|it| it.type_ == "Ready")?.last_transition_time.clone()
    };
    ensure!(since(&before) < since(&after), "the transition time must change");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_probe_within_a_period() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.create_pod("vllm-0", vllm_pod_spec()).await?;
    fixture.wait_for_pod("vllm-0", "ready", is_ready).await?;
    let container = fixture.kubelet.container("vllm-0", "vllm").await?;
    let start = now();
    container.freeze();
    let pod = fixture.wait_for_pod("vllm-0", "not ready", |pod| !is_ready(pod)).await?;
    ensure!(
        start.elapsed() < Duration::from_millis(2700),
        "period and timeout are one second each, but it took {:?}",
        start.elapsed()
    );
    ensure!(
        first_container_status(&pod)?.restart_count == 0 && container.is_running(),
        "a failed readiness probe must not restart the container"
    );
    container.thaw();
    fixture.wait_for_pod("vllm-0", "ready again", is_ready).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_starts_first_and_counts_for_readiness() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let folder = fixture.folder().display().to_string();
    let mut sidecar = shell_container("sidecar", "echo sidecar; sleep 1000");
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] =
        json!({ "exec": { "command": ["test", "-e", format!("{folder}/started")] }, "periodSeconds": 1 });
    sidecar["readinessProbe"] =
        json!({ "exec": { "command": ["test", "-e", format!("{folder}/ready")] }, "periodSeconds": 1 });
    let once = shell_container("once", "echo once");
    let spec =
        json!({ "initContainers": [once, sidecar], "containers": [shell_container("main", "echo main; sleep 1000")] });
    fixture.create_pod("both", spec).await?;

    fixture.wait_for_log("both", "sidecar", "sidecar").await?;
    ensure!(fixture.wait_for_log("both", "once", "once").await?.lines().count() == 1);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let main = fixture.kubelet.container("both", "main").await?;
    ensure!(!main.is_running(), "the container must wait for the sidecar");
    ensure!(phase(&fixture.pods().get("both").await?) == "Pending");

    std::fs::write(format!("{folder}/started"), "")?;
    fixture.wait_for_log("both", "main", "main").await?;
    let pod = fixture.wait_for_pod("both", "running", |pod| phase(pod) == "Running").await?;
    ensure!(
        condition_status(&pod, "Initialized").as_deref() == Some("True") && !is_ready(&pod),
        "the pod must not be ready without the sidecar"
    );
    std::fs::write(format!("{folder}/ready"), "")?;
    fixture.wait_for_pod("both", "ready", is_ready).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_liveness_probe_restarts_the_container() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let mut main = shell_container("main", "trap 'echo asked; exit 0' TERM; echo begin; while :; do sleep 0.02; done");
    let alive = fixture.folder().join("alive");
    std::fs::write(&alive, "")?;
    main["livenessProbe"] = json!({
        "exec": { "command": ["test", "-e", alive] }, "periodSeconds": 1, "failureThreshold": 2,
    });
    fixture.create_pod("pod", json!({ "containers": [main] })).await?;
    fixture.wait_for_log("pod", "main", "begin").await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let container = fixture.kubelet.container("pod", "main").await?;
    ensure!(container.restarts() == 0, "a live container must not be restarted");
    std::fs::remove_file(&alive)?;
    fixture
        .wait_for_pod("pod", "a restart", |pod| first_container_status(pod).is_ok_and(|it| it.restart_count == 1))
        .await?;
    ensure!(container.log() == "begin\nasked\nbegin\n", "{}", container.log());
    ensure!(container.last_exit() == Some(ExitReason::Exit(0)));
    fixture.wait_for_event(&["Unhealthy", "Liveness"]).await
}
