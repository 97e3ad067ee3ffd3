//! Pods of two pools mount one ConfigMap, or pods of a pool and an unpooled one. An unlisted adapter is removed from
//! both, so it is retained as long as either uses it.

use anyhow::{Context as _, Result, ensure};
use rollora_api::{names::SIDECAR_LABEL, rollout::status::RetirementState};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{WaitCondition, cleaned_up, loaded_everywhere, succeeded},
    files::RolloutManifest,
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    guide::{MODEL, POOL, V1, V2},
    http::{self, ListenAddress},
    manifests::Manifests,
};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the second Deployment, and of its pool if it has one.
const OTHER_DEPLOYMENT: &str = "elsewhere";

/// Longer than sidecars take to notice a use that no router reports.
const QUIET_FOR: Duration = Duration::from_secs(18);

/// Adds an unpooled server with the ConfigMap of the pool.
fn add_server_outside_pools(objects: &mut Manifests) -> Result<()> {
    let mut deployment = objects.object_mut("Deployment", POOL)?.clone();
    deployment["metadata"]["name"] = json!(OTHER_DEPLOYMENT);
    deployment["spec"]["replicas"] = json!(1);
    deployment["spec"]["selector"]["matchLabels"]["app"] = json!(OTHER_DEPLOYMENT);
    deployment["spec"]["template"]["metadata"]["labels"]["app"] = json!(OTHER_DEPLOYMENT);
    objects.objects.push(deployment);
    Ok(())
}

/// Adds a second pool with a server, without the label that marks unpooled servers.
fn add_second_pool(objects: &mut Manifests) -> Result<()> {
    add_server_outside_pools(objects)?;
    let deployment = objects.object_mut("Deployment", OTHER_DEPLOYMENT)?;
    let labels =
        deployment["spec"]["template"]["metadata"]["labels"].as_object_mut().context("the pods have no labels")?;
    labels.remove(SIDECAR_LABEL).context("the shipped pods have no sidecar label")?;
    let mut pool = objects.object_mut("InferencePool", POOL)?.clone();
    pool["metadata"]["name"] = json!(OTHER_DEPLOYMENT);
    pool["spec"]["selector"]["matchLabels"]["app"] = json!(OTHER_DEPLOYMENT);
    objects.objects.push(pool);
    Ok(())
}

/// Requests v1 by its id from the other server, without a pause between responses, until `stop` is canceled. Returns
/// the number of responses.
async fn request_v1_until_stopped(server: ListenAddress, stop: CancellationToken) -> Result<u32> {
    let mut answers = 0;
    while !stop.is_cancelled() {
        let body = json!({ "model": V1, "prompt": "hello", "max_tokens": 100 });
        let (status, body) = http::send_request(&server, http::request("POST", "/v1/completions", Some(&body))).await?;
        ensure!(status.is_success(), "{status} after {answers} answers: {}", String::from_utf8_lossy(&body));
        answers += 1;
    }
    Ok(answers)
}

/// Holds if the status reports v1 as in use by the other Deployment.
fn v1_still_in_use() -> WaitCondition {
    WaitCondition::new("v1 is reported as in use by the other Deployment", |snapshot| {
        let used = |entry: &rollora_api::rollout::status::RetiredAdapter| {
            entry.id.as_str() == V1
                && entry.state == RetirementState::StillInUse
                && entry.reason.contains(OTHER_DEPLOYMENT)
        };
        snapshot.status.as_ref().is_ok_and(|status| status.retired.iter().any(used))
    })
}

#[test]
fn adapter_used_by_another_pool_is_retained() {
    if !cluster_tools_available("two pools with one ConfigMap") {
        return;
    }
    let options =
        async || Ok(ClusterOptions { patch_manifests: Box::new(add_second_pool), ..ClusterOptions::default() });
    run_on_cluster(&setup(), options, check_used_elsewhere);
}

#[test]
fn adapter_used_by_an_unpooled_server_is_retained() {
    if !cluster_tools_available("a pool and an unpooled server with one ConfigMap") {
        return;
    }
    let options = async || {
        Ok(ClusterOptions { patch_manifests: Box::new(add_server_outside_pools), ..ClusterOptions::default() })
    };
    run_on_cluster(&setup(), options, check_used_elsewhere);
}

fn setup() -> Setup {
    let rollout = RolloutManifest { quiet_for: QUIET_FOR, ..RolloutManifest::guide(Duration::from_millis(200)) };
    Setup { rollout, ..Setup::guide(Duration::ZERO) }
}

async fn check_used_elsewhere(harness: &mut Harness<ClusterEnvironment>) -> Result<()> {
    harness.wait_for_baseline().await?;
    let server = &harness.environment.containers(OTHER_DEPLOYMENT, "vllm")[0];
    let (server, stop) = (ListenAddress::Tcp((server.address(), 8000).into()), CancellationToken::new());
    crate::cluster_objects::wait_for("the other server has v1", async || {
        let models: serde_json::Value = http::get_json(&server, "/v1/models").await?;
        Ok(models.to_string().contains(V1).then_some(()))
    })
    .await?;
    let mut requests = JoinSet::new();
    requests.spawn(request_v1_until_stopped(server.clone(), stop.clone()));
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));

    harness.list_adapter(V2).await?;
    harness.wait_for(succeeded(V2).and(v1_still_in_use())).await?;
    harness.assert_holds_for(Duration::from_secs(1), loaded_everywhere(V1)).await?;

    stop.cancel();
    let answers = requests.join_next().await.context("no request was sent")???;
    ensure!(answers > 10, "the other server answered {answers} times");
    harness.wait_for_within(QUIET_FOR + Duration::from_secs(30), cleaned_up(V1)).await?;
    let models: serde_json::Value = http::get_json(&server, "/v1/models").await?;
    ensure!(!models.to_string().contains(V1), "v1 is reported as gone, but the other server has it: {models}");
    harness.stop_clients_and_verify().await.map(drop)
}
