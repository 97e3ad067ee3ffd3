//! Restarts, termination and deletion of pods.

use crate::fixture::{KubeletFixture, first_container_status, is_ready, now, phase, shell_container};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::process::ExitReason;
use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn exited_container_restarts_with_increasing_delays() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.create_shell_pod("pod", "date +%s%3N; exit 3").await?;
    fixture
        .wait_for_pod("pod", "three restarts", |pod| first_container_status(pod).is_ok_and(|it| it.restart_count >= 3))
        .await?;
    let log = fixture.kubelet.container("pod", "main").await?.log();
    let times: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    let delays: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The fixture's delays double: 0, 600 and 1200 ms.
    ensure!(delays[0] < 600 && (600..1200).contains(&delays[1]) && (1200..2400).contains(&delays[2]), "{delays:?}");
    let pod =
        fixture.wait_for_pod("pod", "CrashLoopBackOff", |pod| waiting_reason(pod) == Some("CrashLoopBackOff")).await?;
    let last = first_container_status(&pod)?.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    ensure!(last.context("the status has no last termination")?.exit_code == 3);
    Ok(())
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    first_container_status(pod).ok()?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_without_restarts_ends_with_its_exit_code() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    for (name, code, expected) in [("good", 0, "Succeeded"), ("bad", 1, "Failed")] {
        let main = shell_container("main", &format!("exit {code}"));
        fixture.create_pod(name, json!({ "restartPolicy": "Never", "containers": [main] })).await?;
        let pod = fixture.wait_for_pod(name, expected, |pod| phase(pod) == expected).await?;
        ensure!(!is_ready(&pod) && first_container_status(&pod)?.restart_count == 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_pod_gets_sigterm_before_its_object_goes() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let polite = "trap 'echo asked; sleep 0.5; echo bye; exit 0' TERM; echo begin; while :; do sleep 0.02; done";
    let mut main = shell_container("main", polite);
    main["lifecycle"] = json!({ "preStop": { "exec": { "command": ["/bin/sh", "-c", format!(
        "echo before > {}/hook", fixture.folder().display()
    )] } } });
    let mut sidecar =
        shell_container("sidecar", "trap 'echo asked; exit 0' TERM; echo begin; while :; do sleep 0.02; done");
    sidecar["restartPolicy"] = json!("Always");
    fixture.create_pod("pod", json!({ "initContainers": [sidecar], "containers": [main] })).await?;
    fixture.wait_for_log("pod", "main", "begin").await?;
    let containers =
        [fixture.kubelet.container("pod", "main").await?, fixture.kubelet.container("pod", "sidecar").await?];

    fixture.delete_pod("pod", 10).await?;
    fixture.wait_for_log("pod", "main", "asked").await?;
    ensure!(containers[1].log() == "begin\n", "the sidecar must be stopped after the container");
    ensure!(fixture.pods().get_opt("pod").await?.is_some(), "the object must not be deleted before the process exits");
    fixture.wait_for_pod_deletion("pod").await?;
    ensure!(containers[0].log() == "begin\nasked\nbye\n", "{}", containers[0].log());
    ensure!(containers[1].log() == "begin\nasked\n", "{}", containers[1].log());
    ensure!(containers[0].last_exit() == Some(ExitReason::Exit(0)) && containers[0].restarts() == 0);
    ensure!(std::fs::read_to_string(fixture.folder().join("hook"))? == "before\n");
    fixture.wait_for_container_removal("pod", "main").await
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_ignores_sigterm_is_killed() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.create_shell_pod("pod", "trap '' TERM; echo begin; while :; do sleep 0.05; done").await?;
    fixture.wait_for_log("pod", "main", "begin").await?;
    let container = fixture.kubelet.container("pod", "main").await?;
    let start = now();
    fixture.delete_pod("pod", 1).await?;
    fixture.wait_for_pod_deletion("pod").await?;
    let took = start.elapsed();
    ensure!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "the deletion took {took:?}");
    ensure!(container.last_exit() == Some(ExitReason::Signal(9)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_with_a_reused_name_is_a_new_pod() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let first = fixture.create_shell_pod("pod", "echo $HOSTNAME; exec sleep 1000").await?;
    fixture.wait_for_pod("pod", "ready", is_ready).await?;
    fixture.delete_pod("pod", 0).await?;
    fixture.wait_for_pod_deletion("pod").await?;
    let second = fixture.create_shell_pod("pod", "echo second; exec sleep 1000").await?;
    ensure!(first.metadata.uid != second.metadata.uid);
    let pod = fixture.wait_for_pod("pod", "ready", is_ready).await?;
    ensure!(pod.metadata.uid == second.metadata.uid);
    fixture.wait_for_log("pod", "main", "second").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_pod_is_rejected_with_a_message() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let main = shell_container("main", "true");
    let volume = json!({ "name": "disk", "hostPath": { "path": "/" } });
    fixture.create_pod("pod", json!({ "containers": [main], "volumes": [volume] })).await?;
    let pod = fixture.wait_for_pod("pod", "the phase Failed", |pod| phase(pod) == "Failed").await?;
    let message = pod.status.and_then(|status| status.message).unwrap_or_default();
    ensure!(message.contains("\"disk\""), "{message}");

    fixture.create_pod("image", json!({ "containers": [{ "name": "main", "image": "unknown:1" }] })).await?;
    let pod = fixture
        .wait_for_pod("image", "CreateContainerConfigError", |pod| {
            waiting_reason(pod) == Some("CreateContainerConfigError")
        })
        .await?;
    ensure!(serde_json::to_string(&pod.status)?.contains("unknown:1"), "{pod:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_end_with_the_kubelet() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    fixture.create_shell_pod("pod", "sleep 1000 & echo $!; wait").await?;
    let log = fixture.wait_for_log("pod", "main", "\n").await?;
    let child = Pid::from_raw(log.trim().parse()?).context("the output is not a process id")?;
    test_kill_process(child)?;
    drop(fixture);
    let start = now();
    while test_kill_process(child).is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(10), "the child process is still running");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
