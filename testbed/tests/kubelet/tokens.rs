//! Pods authenticate to the API server as their service account.

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

async fn create_pod_with_account(fixture: &KubeletFixture, script: &str) -> Result<()> {
    fixture.create_service_account("test-account").await?;
    let spec = json!({ "serviceAccountName": "test-account", "containers": [shell_container("main", script)] });
    fixture.create_pod("pod", spec).await.map(drop)
}

/// Returns the pod's token file, which is next to the kubeconfig that the pod prints.
async fn find_token_file(fixture: &KubeletFixture) -> Result<PathBuf> {
    let log = fixture.wait_for_log("pod", "main", "kubeconfig\n").await?;
    let path = log.lines().next().context("the output is empty")?;
    Ok(Path::new(path).with_file_name("token"))
}

async fn token_username(token: &str) -> Result<String> {
    let plane = ControlPlane::shared().await?;
    let client = plane.client(&Credential::Token(token.to_owned())).await?;
    let review = kube::Api::<k8s_openapi::api::authentication::v1::SelfSubjectReview>::all(client);
    let response =
        review.create(&kube::api::PostParams::default(), &serde_json::from_value(json!({ "metadata": {} }))?).await?;
    let user = response.status.and_then(|status| status.user_info).and_then(|user| user.username);
    user.context("the review names no user")
}

#[tokio::test(flavor = "multi_thread")]
async fn container_authenticates_as_its_service_account() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let kubectl = CONTROL_PLANE.program("kubectl")?;
    let kubectl = kubectl.display();
    let mounted = "/var/run/secrets/kubernetes.io/serviceaccount";
    create_pod_with_account(
        &fixture,
        &format!("{kubectl} auth whoami; cat {mounted}/namespace; echo; exec sleep 1000"),
    )
    .await?;
    let space = &fixture.namespace;
    let log = fixture.wait_for_log("pod", "main", &format!("{space}\n")).await?;
    ensure!(log.contains(&format!("system:serviceaccount:{space}:test-account")), "{log}");
    ensure!(log.contains("authentication.kubernetes.io/pod-name"), "the token is not bound to the pod: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_renewed_early_and_expires_with_its_pod() -> Result<()> {
    let fixture =
        KubeletFixture::with_options(|options| options.token_renewal_interval = Duration::from_millis(700)).await?;
    create_pod_with_account(&fixture, "echo $KUBECONFIG; exec sleep 1000").await?;
    fixture.wait_for_pod("pod", "ready", is_ready).await?;
    let file = find_token_file(&fixture).await?;
    let first = std::fs::read_to_string(&file)?;
    let second = loop {
        // The folder may disappear between reading the link and opening the file.
        let Ok(second) = std::fs::read_to_string(&file) else { continue };
        if second != first {
            break second;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let name = format!("system:serviceaccount:{}:test-account", fixture.namespace);
    ensure!(token_username(&first).await? == name && token_username(&second).await? == name);
    let lifetime = token_lifetime_seconds(&second)?;
    ensure!(lifetime == 600, "the token is valid for {lifetime} s");

    fixture.delete_pod("pod", 1).await?;
    fixture.wait_for_pod_deletion("pod").await?;
    // The API server caches tokens for some seconds.
    let refused = async {
        while token_username(&second).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.context("the token is still valid without its pod")
}

/// Computes the lifetime from the token's claims.
fn token_lifetime_seconds(token: &str) -> Result<i64> {
    let claims = token.split('.').nth(1).context("the token has no claims")?;
    let padded = format!("{}{}", claims.replace('-', "+").replace('_', "/"), "=".repeat((4 - claims.len() % 4) % 4));
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(padded))?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes.0)?;
    let number = |name: &str| claims[name].as_i64().with_context(|| format!("the token has no claim {name}"));
    Ok(number("exp")? - number("iat")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_waits_for_its_service_account() -> Result<()> {
    let fixture = KubeletFixture::new().await?;
    let main = shell_container("main", "echo begin; exec sleep 1000");
    fixture.create_pod("pod", json!({ "serviceAccountName": "test-account", "containers": [main] })).await?;
    fixture.wait_for_event(&["FailedMount", "test-account"]).await?;
    fixture.create_service_account("test-account").await?;
    fixture.wait_for_log("pod", "main", "begin").await.map(drop)
}
