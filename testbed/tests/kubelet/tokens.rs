//! Pods show themselves to the API server as their service account.

use crate::stage::{Stage, is_ready, shell};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    control_plane::{ControlPlane, Credential},
    homes::CONTROL_PLANE,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

async fn pod_with_account(stage: &Stage, script: &str) -> Result<()> {
    stage.account("somebody").await?;
    let spec = json!({ "serviceAccountName": "somebody", "containers": [shell("main", script)] });
    stage.pod("pod", spec).await.map(drop)
}

/// Where the pod has its token.
async fn token_file(stage: &Stage) -> Result<PathBuf> {
    let log = stage.log_of("pod", "main", "kubeconfig\n").await?;
    let path = log.lines().next().context("no path")?;
    Ok(Path::new(path).with_file_name("token"))
}

async fn who_is(token: &str) -> Result<String> {
    let plane = ControlPlane::shared().await?;
    let client = plane.client(&Credential::Token(token.to_owned())).await?;
    let review = kube::Api::<k8s_openapi::api::authentication::v1::SelfSubjectReview>::all(client);
    let answer =
        review.create(&kube::api::PostParams::default(), &serde_json::from_value(json!({ "metadata": {} }))?).await?;
    let user = answer.status.and_then(|status| status.user_info).and_then(|user| user.username);
    user.context("nobody")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_its_service_account() -> Result<()> {
    let stage = Stage::new().await?;
    let kubectl = CONTROL_PLANE.program("kubectl")?;
    let kubectl = kubectl.display();
    let mounted = "/var/run/secrets/kubernetes.io/serviceaccount";
    pod_with_account(&stage, &format!("{kubectl} auth whoami; cat {mounted}/namespace; echo; exec sleep 1000")).await?;
    let space = &stage.namespace;
    let log = stage.log_of("pod", "main", &format!("{space}\n")).await?;
    ensure!(log.contains(&format!("system:serviceaccount:{space}:somebody")), "{log}");
    ensure!(log.contains("authentication.kubernetes.io/pod-name"), "the token is not bound to the pod: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_is_over_and_ends_with_its_pod() -> Result<()> {
    let stage = Stage::with(|options| options.token_renewal = Duration::from_millis(700)).await?;
    pod_with_account(&stage, "echo $KUBECONFIG; exec sleep 1000").await?;
    stage.sees("pod", "ready", is_ready).await?;
    let file = token_file(&stage).await?;
    let first = std::fs::read_to_string(&file)?;
    let second = loop {
        // Between reading the link and opening the file the folder may go.
        let Ok(second) = std::fs::read_to_string(&file) else { continue };
        if second != first {
            break second;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let name = format!("system:serviceaccount:{}:somebody", stage.namespace);
    ensure!(who_is(&first).await? == name && who_is(&second).await? == name);
    let life = seconds_of_life(&second)?;
    ensure!(life == 600, "it lives {life} s");

    stage.delete("pod", 1).await?;
    stage.sees_gone("pod").await?;
    // The API server remembers a token for some seconds.
    let refused = async {
        while who_is(&second).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.context("a token outlives its pod")
}

/// From the token's own claims.
fn seconds_of_life(token: &str) -> Result<i64> {
    let claims = token.split('.').nth(1).context("no claims")?;
    let padded = format!("{}{}", claims.replace('-', "+").replace('_', "/"), "=".repeat((4 - claims.len() % 4) % 4));
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(padded))?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes.0)?;
    let number = |name: &str| claims[name].as_i64().with_context(|| format!("no {name}"));
    Ok(number("exp")? - number("iat")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_its_service_account_waits_for_it() -> Result<()> {
    let stage = Stage::new().await?;
    let main = shell("main", "echo begin; exec sleep 1000");
    stage.pod("pod", json!({ "serviceAccountName": "somebody", "containers": [main] })).await?;
    stage.sees_event(&["FailedMount", "somebody"]).await?;
    stage.account("somebody").await?;
    stage.log_of("pod", "main", "begin").await.map(drop)
}
