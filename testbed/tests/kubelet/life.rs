//! Restarts, endings and deletion.

use crate::stage::{Stage, first, is_ready, now, phase, shell};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::process::Ending;
use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_is_started_again_at_once_and_then_later_and_later() -> Result<()> {
    let stage = Stage::new().await?;
    stage.shell("pod", "date +%s%3N; exit 3").await?;
    stage.sees("pod", "three restarts", |pod| first(pod).is_ok_and(|it| it.restart_count >= 3)).await?;
    let log = stage.kubelet.container("pod", "main").await?.log();
    let times: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Twice as long each time: 0, 600 and 1200 ms, as the stage has it.
    ensure!(pauses[0] < 600 && (600..1200).contains(&pauses[1]) && (1200..2400).contains(&pauses[2]), "{pauses:?}");
    let pod = stage.sees("pod", "why it waits", |pod| waits(pod) == Some("CrashLoopBackOff")).await?;
    let last = first(&pod)?.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    ensure!(last.context("nothing of its end")?.exit_code == 3);
    Ok(())
}

fn waits(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    first(pod).ok()?.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_never_started_again_ends_as_its_container_did() -> Result<()> {
    let stage = Stage::new().await?;
    for (name, code, expected) in [("good", 0, "Succeeded"), ("bad", 1, "Failed")] {
        let main = shell("main", &format!("exit {code}"));
        stage.pod(name, json!({ "restartPolicy": "Never", "containers": [main] })).await?;
        let pod = stage.sees(name, expected, |pod| phase(pod) == expected).await?;
        ensure!(!is_ready(&pod) && first(&pod)?.restart_count == 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_asked_to_end_before_its_object_goes() -> Result<()> {
    let stage = Stage::new().await?;
    let polite = "trap 'echo asked; sleep 0.5; echo bye; exit 0' TERM; echo begin; while :; do sleep 0.02; done";
    let mut main = shell("main", polite);
    main["lifecycle"] = json!({ "preStop": { "exec": { "command": ["/bin/sh", "-c", format!(
        "echo before > {}/hook", stage.folder().display()
    )] } } });
    let mut sidecar = shell("sidecar", "trap 'echo asked; exit 0' TERM; echo begin; while :; do sleep 0.02; done");
    sidecar["restartPolicy"] = json!("Always");
    stage.pod("pod", json!({ "initContainers": [sidecar], "containers": [main] })).await?;
    stage.log_of("pod", "main", "begin").await?;
    let containers = [stage.kubelet.container("pod", "main").await?, stage.kubelet.container("pod", "sidecar").await?];

    stage.delete("pod", 10).await?;
    stage.log_of("pod", "main", "asked").await?;
    ensure!(containers[1].log() == "begin\n", "the sidecar ends behind the container");
    ensure!(stage.pods().get_opt("pod").await?.is_some(), "the object went before the process");
    stage.sees_gone("pod").await?;
    ensure!(containers[0].log() == "begin\nasked\nbye\n", "{}", containers[0].log());
    ensure!(containers[1].log() == "begin\nasked\n", "{}", containers[1].log());
    ensure!(containers[0].last_ending() == Some(Ending::Exit(0)) && containers[0].restarts() == 0);
    ensure!(std::fs::read_to_string(stage.folder().join("hook"))? == "before\n");
    stage.is_forgotten("pod", "main").await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_end_when_asked_is_killed_when_the_time_is_over() -> Result<()> {
    let stage = Stage::new().await?;
    stage.shell("pod", "trap '' TERM; echo begin; while :; do sleep 0.05; done").await?;
    stage.log_of("pod", "main", "begin").await?;
    let container = stage.kubelet.container("pod", "main").await?;
    let start = now();
    stage.delete("pod", 1).await?;
    stage.sees_gone("pod").await?;
    let took = start.elapsed();
    ensure!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "it took {took:?}");
    ensure!(container.last_ending() == Some(Ending::Signal(9)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_same_name_is_another_pod() -> Result<()> {
    let stage = Stage::new().await?;
    let first = stage.shell("pod", "echo $HOSTNAME; exec sleep 1000").await?;
    stage.sees("pod", "ready", is_ready).await?;
    stage.delete("pod", 0).await?;
    stage.sees_gone("pod").await?;
    let second = stage.shell("pod", "echo second; exec sleep 1000").await?;
    ensure!(first.metadata.uid != second.metadata.uid);
    let pod = stage.sees("pod", "ready", is_ready).await?;
    ensure!(pod.metadata.uid == second.metadata.uid);
    stage.log_of("pod", "main", "second").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_run_here_is_refused_with_words() -> Result<()> {
    let stage = Stage::new().await?;
    let main = shell("main", "true");
    let volume = json!({ "name": "disk", "hostPath": { "path": "/" } });
    stage.pod("pod", json!({ "containers": [main], "volumes": [volume] })).await?;
    let pod = stage.sees("pod", "refused", |pod| phase(pod) == "Failed").await?;
    let message = pod.status.and_then(|status| status.message).unwrap_or_default();
    ensure!(message.contains("\"disk\""), "{message}");

    stage.pod("image", json!({ "containers": [{ "name": "main", "image": "unknown:1" }] })).await?;
    let pod = stage.sees("image", "refused", |pod| waits(pod) == Some("CreateContainerConfigError")).await?;
    ensure!(serde_json::to_string(&pod.status)?.contains("unknown:1"), "{pod:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_with_the_kubelet() -> Result<()> {
    let stage = Stage::new().await?;
    stage.shell("pod", "sleep 1000 & echo $!; wait").await?;
    let log = stage.log_of("pod", "main", "\n").await?;
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
