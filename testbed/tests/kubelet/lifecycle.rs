//! Restarts, endings and deletion.

use crate::fixture::{KubeletFixture, first_container_status, is_ready, now, phase, shell_container};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::process::ExitReason;
use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_is_started_again_at_once_and_then_later_and_later() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    stage.create_shell_pod("pod", "date +%s%3N; exit 3").await?;
    stage
        .wait_for_pod("pod", "three restarts", |pod| first_container_status(pod).is_ok_and(|it| it.restart_count >= 3))
        .await?;
    let log = stage.kubelet.container("pod", "main").await?.log();
    let times: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Twice as long each time: 0, 600 and 1200 ms, as the stage has it.
    ensure!(pauses[0] < 600 && (600..1200).contains(&pauses[1]) && (1200..2400).contains(&pauses[2]), "{pauses:?}");
    let pod = stage.wait_for_pod("pod", "why it waits", |pod| waiting_reason(pod) == Some("CrashLoopBackOff")).await?;
    let last = first_container_status(&pod)?.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    ensure!(last.context("nothing of its end")?.exit_code == 3);
    Ok(())
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    first_container_status(pod).ok()?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_never_started_again_ends_as_its_container_did() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    for (name, code, expected) in [("good", 0, "Succeeded"), ("bad", 1, "Failed")] {
        let main = shell_container("main", &format!("exit {code}"));
        stage.create_pod(name, json!({ "restartPolicy": "Never", "containers": [main] })).await?;
        let pod = stage.wait_for_pod(name, expected, |pod| phase(pod) == expected).await?;
        ensure!(!is_ready(&pod) && first_container_status(&pod)?.restart_count == 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_asked_to_end_before_its_object_goes() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    let polite = "trap 'echo asked; sleep 0.5; echo bye; exit 0' TERM; echo begin; while :; do sleep 0.02; done";
    let mut main = shell_container("main", polite);
    main["lifecycle"] = json!({ "preStop": { "exec": { "command": ["/bin/sh", "-c", format!(
        "echo before > {}/hook", stage.folder().display()
    )] } } });
    let mut sidecar =
        shell_container("sidecar", "trap 'echo asked; exit 0' TERM; echo begin; while :; do sleep 0.02; done");
    sidecar["restartPolicy"] = json!("Always");
    stage.create_pod("pod", json!({ "initContainers": [sidecar], "containers": [main] })).await?;
    stage.wait_for_log("pod", "main", "begin").await?;
    let containers = [stage.kubelet.container("pod", "main").await?, stage.kubelet.container("pod", "sidecar").await?];

    stage.delete_pod("pod", 10).await?;
    stage.wait_for_log("pod", "main", "asked").await?;
    ensure!(containers[1].log() == "begin\n", "the sidecar ends behind the container");
    ensure!(stage.pods().get_opt("pod").await?.is_some(), "the object went before the process");
    stage.wait_for_pod_deletion("pod").await?;
    ensure!(containers[0].log() == "begin\nasked\nbye\n", "{}", containers[0].log());
    ensure!(containers[1].log() == "begin\nasked\n", "{}", containers[1].log());
    ensure!(containers[0].last_exit() == Some(ExitReason::Exit(0)) && containers[0].restarts() == 0);
    ensure!(std::fs::read_to_string(stage.folder().join("hook"))? == "before\n");
    stage.wait_for_container_removal("pod", "main").await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_end_when_asked_is_killed_when_the_time_is_over() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    stage.create_shell_pod("pod", "trap '' TERM; echo begin; while :; do sleep 0.05; done").await?;
    stage.wait_for_log("pod", "main", "begin").await?;
    let container = stage.kubelet.container("pod", "main").await?;
    let start = now();
    stage.delete_pod("pod", 1).await?;
    stage.wait_for_pod_deletion("pod").await?;
    let took = start.elapsed();
    ensure!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "it took {took:?}");
    ensure!(container.last_exit() == Some(ExitReason::Signal(9)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_same_name_is_another_pod() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    let first = stage.create_shell_pod("pod", "echo $HOSTNAME; exec sleep 1000").await?;
    stage.wait_for_pod("pod", "ready", is_ready).await?;
    stage.delete_pod("pod", 0).await?;
    stage.wait_for_pod_deletion("pod").await?;
    let second = stage.create_shell_pod("pod", "echo second; exec sleep 1000").await?;
    ensure!(first.metadata.uid != second.metadata.uid);
    let pod = stage.wait_for_pod("pod", "ready", is_ready).await?;
    ensure!(pod.metadata.uid == second.metadata.uid);
    stage.wait_for_log("pod", "main", "second").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_run_here_is_refused_with_words() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    let main = shell_container("main", "true");
    let volume = json!({ "name": "disk", "hostPath": { "path": "/" } });
    stage.create_pod("pod", json!({ "containers": [main], "volumes": [volume] })).await?;
    let pod = stage.wait_for_pod("pod", "refused", |pod| phase(pod) == "Failed").await?;
    let message = pod.status.and_then(|status| status.message).unwrap_or_default();
    ensure!(message.contains("\"disk\""), "{message}");

    stage.create_pod("image", json!({ "containers": [{ "name": "main", "image": "unknown:1" }] })).await?;
    let pod =
        stage.wait_for_pod("image", "refused", |pod| waiting_reason(pod) == Some("CreateContainerConfigError")).await?;
    ensure!(serde_json::to_string(&pod.status)?.contains("unknown:1"), "{pod:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_with_the_kubelet() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    stage.create_shell_pod("pod", "sleep 1000 & echo $!; wait").await?;
    let log = stage.wait_for_log("pod", "main", "\n").await?;
    let child = Pid::from_raw(log.trim().parse()?).context("no process")?;
    test_kill_process(child)?;
    drop(stage);
    let start = now();
    while test_kill_process(child).is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(10), "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
