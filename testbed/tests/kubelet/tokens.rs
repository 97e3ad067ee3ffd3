//! Pods show themselves to the API server as their service account.

use crate::fixture::{KubeletFixture, is_ready, shell_container};
use anyhow::{Context as _, Result, ensure};
use rollora_testbed::{
    control_plane::{ControlPlane, Credential},
    tools::CONTROL_PLANE,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

async fn create_pod_with_account(stage: &KubeletFixture, script: &str) -> Result<()> {
    stage.create_service_account("somebody").await?;
    let spec = json!({ "serviceAccountName": "somebody", "containers": [shell_container("main", script)] });
    stage.create_pod("pod", spec).await.map(drop)
}

/// Where the pod has its token.
async fn find_token_file(stage: &KubeletFixture) -> Result<PathBuf> {
    let log = stage.wait_for_log("pod", "main", "kubeconfig\n").await?;
    let path = log.lines().next().context("no path")?;
    Ok(Path::new(path).with_file_name("token"))
}

async fn token_username(token: &str) -> Result<String> {
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
    let stage = KubeletFixture::new().await?;
    let kubectl = CONTROL_PLANE.program("kubectl")?;
    let kubectl = kubectl.display();
    let mounted = "/var/run/secrets/kubernetes.io/serviceaccount";
    create_pod_with_account(&stage, &format!("{kubectl} auth whoami; cat {mounted}/namespace; echo; exec sleep 1000"))
        .await?;
    let space = &stage.namespace;
    let log = stage.wait_for_log("pod", "main", &format!("{space}\n")).await?;
    ensure!(log.contains(&format!("system:serviceaccount:{space}:somebody")), "{log}");
    ensure!(log.contains("authentication.kubernetes.io/pod-name"), "the token is not bound to the pod: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_is_over_and_ends_with_its_pod() -> Result<()> {
    let stage =
        KubeletFixture::with_options(|options| options.token_renewal_interval = Duration::from_millis(700)).await?;
    create_pod_with_account(&stage, "echo $KUBECONFIG; exec sleep 1000").await?;
    stage.wait_for_pod("pod", "ready", is_ready).await?;
    let file = find_token_file(&stage).await?;
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
    ensure!(token_username(&first).await? == name && token_username(&second).await? == name);
    let life = token_lifetime_seconds(&second)?;
    ensure!(life == 600, "it lives {life} s");

    stage.delete_pod("pod", 1).await?;
    stage.wait_for_pod_deletion("pod").await?;
    // The API server remembers a token for some seconds.
    let refused = async {
        while token_username(&second).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.context("a token outlives its pod")
}

/// From the token's own claims.
fn token_lifetime_seconds(token: &str) -> Result<i64> {
    let claims = token.split('.').nth(1).context("no claims")?;
    let padded = format!("{}{}", claims.replace('-', "+").replace('_', "/"), "=".repeat((4 - claims.len() % 4) % 4));
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(padded))?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes.0)?;
    let number = |name: &str| claims[name].as_i64().with_context(|| format!("no {name}"));
    Ok(number("exp")? - number("iat")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_its_service_account_waits_for_it() -> Result<()> {
    let stage = KubeletFixture::new().await?;
    let main = shell_container("main", "echo begin; exec sleep 1000");
    stage.create_pod("pod", json!({ "serviceAccountName": "somebody", "containers": [main] })).await?;
    stage.wait_for_event(&["FailedMount", "somebody"]).await?;
    stage.create_service_account("somebody").await?;
    stage.wait_for_log("pod", "main", "begin").await.map(drop)
}
