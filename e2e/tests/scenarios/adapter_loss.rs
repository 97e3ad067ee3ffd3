//! A server loses the stable adapter but keeps running: the status names the server.

use crate::cluster_objects::ExpectedCondition;
use anyhow::Result;
use rollora_api::{
    condition::{ConditionStatus, condition_type::ADAPTER_RESIDENT, reason},
    names::AdapterId,
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{SystemSnapshot, WaitCondition, all_servers_ready, cleaned_up, succeeded},
    harness::{Environment as _, Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use serde_json::json;
use std::time::Duration;

/// Holds if the status of the condition `AdapterResident` is this one.
fn adapter_resident(status: ConditionStatus) -> WaitCondition {
    WaitCondition::new(format!("{ADAPTER_RESIDENT} is {status:?}"), move |snapshot: &SystemSnapshot| {
        let conditions = snapshot.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == ADAPTER_RESIDENT && condition.status == status)
    })
}

/// Holds if the sidecar of a server reports v2 as verified or not.
fn sidecar_reports(index: usize, verified: bool) -> WaitCondition {
    WaitCondition::new(
        format!("the sidecar of server {index} reports {V2} as verified: {verified}"),
        move |snapshot: &SystemSnapshot| {
            let id = AdapterId::new(V2).ok();
            let sidecar = snapshot.servers.get(index).and_then(|server| server.sidecar.as_ref());
            id.zip(sidecar).is_some_and(|(id, sidecar)| sidecar.is_verified(&id) == verified)
        },
    )
}

/// Restarts a sidecar. Its server is not Ready for a moment, and the new sidecar polls it immediately. The operator
/// asks a server about a finished Rollout only when its pod becomes Ready.
async fn restart_sidecar(harness: &Harness<ClusterEnvironment>, index: usize) -> Result<()> {
    let sidecar = harness.environment.sidecar(index)?;
    sidecar.kill_and_hold();
    let is_away = WaitCondition::new(format!("server {index} is not Ready"), move |snapshot: &SystemSnapshot| {
        snapshot.servers.get(index).is_some_and(|server| !server.ready)
    });
    harness.wait_for(is_away).await?;
    sidecar.release();
    harness.wait_for(all_servers_ready()).await.map(drop)
}

#[test]
fn server_without_the_stable_adapter_is_reported() {
    if !cluster_tools_available("a server loses the adapter that serves") {
        return;
    }
    run_on_cluster(
        &Setup::guide(Duration::from_millis(200)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
            harness.list_adapter(V2).await?;
            harness.wait_for(cleaned_up(V1).and(succeeded(V2)).and(adapter_resident(ConditionStatus::True))).await?;
            harness.stop_clients_and_verify().await?;

            let server = &harness.environment.servers()[1];
            server.patch_knobs(json!({ "fail_load": { V2: "500" } })).await?;
            server.unload_adapter(V2).await?;
            let name = server.name();
            restart_sidecar(harness, 1).await?;
            harness.wait_for(sidecar_reports(1, false)).await?;
            harness.wait_for(adapter_resident(ConditionStatus::False).and(all_servers_ready())).await?;
            let words = [name.as_str(), V2];
            ExpectedCondition { condition: ADAPTER_RESIDENT, reason: reason::NOT_RESIDENT, expected_words: &words }
                .wait_until_reported(harness, MODEL)
                .await?;

            server.patch_knobs(json!({ "fail_load": {} })).await?;
            harness.wait_for(sidecar_reports(1, true)).await?;
            // The pod was Ready all the time, so no pod event triggers this reconcile.
            harness.wait_for(adapter_resident(ConditionStatus::True)).await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
            harness.wait_for_requests(100).await?;
            harness.stop_clients_and_verify().await.map(drop)
        },
    );
}
