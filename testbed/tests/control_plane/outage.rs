//! An API server that is killed, hangs, is restarted, and gets and loses CRDs.

use super::{now, run_with_runtime, wait_for};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};
use rollora_testbed::control_plane::{ControlPlane, UPSTREAM_CRDS};
use serde_json::json;
use std::time::Duration;

const SHORT_TIMEOUT: Duration = Duration::from_millis(300);

async fn serves_rewrites(client: &Client, group: &str) -> Result<bool> {
    let path = format!("/apis/{group}/v1alpha2/inferencemodelrewrites");
    Ok(client.request_text(http::Request::get(path).body(Vec::new())?).await.is_ok())
}

#[test]
fn data_survives_restart_and_crds_can_be_changed() -> Result<()> {
    run_with_runtime(async || {
        let start = now();
        let mut plane = ControlPlane::start().await?;
        eprintln!("ready after {:?}", start.elapsed());
        let client = plane.admin_client().await?;
        let namespace = plane.create_namespace("outage").await?;
        let maps = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        let map = serde_json::from_value(json!({ "metadata": { "name": "kept" }, "data": { "key": "value" } }))?;
        maps.create(&PostParams::default(), &map).await?;
        let legacy = UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.legacy_rewrite)?;
        ensure!(
            !serves_rewrites(&client, "inference.networking.x-k8s.io").await?,
            "a new API server must have no CRDs"
        );
        plane.install_crds(std::slice::from_ref(&legacy)).await?;

        plane.kill_api_server();
        ensure!(maps.get("kept").await.is_err(), "a killed API server must not respond");
        plane.start_api_server().await?;
        ensure!(maps.get("kept").await?.data.unwrap_or_default()["key"] == "value", "the data must survive a restart");
        // For a moment a custom resource returns 429, while its storage is being initialized.
        wait_for("the resource to be served again", async || {
            serves_rewrites(&client, "inference.networking.x-k8s.io").await
        })
        .await?;

        plane.freeze_api_server();
        ensure!(
            tokio::time::timeout(SHORT_TIMEOUT, maps.get("kept")).await.is_err(),
            "a frozen API server must not respond"
        );
        plane.thaw_api_server();
        maps.get("kept").await?;

        plane.install_crds(&[UPSTREAM_CRDS.crd_file(UPSTREAM_CRDS.current_rewrite)?]).await?;
        wait_for("the new resource to be served", async || serves_rewrites(&client, "llm-d.ai").await).await?;
        plane.uninstall_crd(&legacy).await?;
        ensure!(
            !serves_rewrites(&client, "inference.networking.x-k8s.io").await?
                && serves_rewrites(&client, "llm-d.ai").await?
        );
        Ok(())
    })
}
