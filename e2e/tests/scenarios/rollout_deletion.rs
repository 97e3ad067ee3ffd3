//! A deleted Rollout's entries are removed from the operator directives, even if no operator ran at the time.

use crate::cluster_objects::{rollouts_api, wait_for};
use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::DeleteParams};
use rollora_api::{names::DIRECTIVES_KEY, operator_directives::OperatorDirectives};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{loaded_everywhere, served_by},
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::guide::{ADAPTERS_CONFIG_MAP, MODEL, V1, V2};
use std::time::Duration;

async fn read_directives(harness: &Harness<ClusterEnvironment>) -> Result<OperatorDirectives> {
    let config_maps: Api<ConfigMap> = Api::namespaced(harness.environment.client(), harness.environment.namespace());
    let data = config_maps.get(ADAPTERS_CONFIG_MAP).await?.data.unwrap_or_default();
    Ok(OperatorDirectives::parse(data.get(DIRECTIVES_KEY).map_or("", String::as_str))?)
}

#[test]
fn entries_of_a_rollout_deleted_unobserved_are_removed() {
    if !cluster_tools_available("a Rollout is deleted while no operator runs") {
        return;
    }
    run_on_cluster(
        &Setup::guide(Duration::from_millis(200)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
            let managed = async || Ok((!read_directives(harness).await?.managed.is_empty()).then_some(()));
            wait_for("the operator directives manage the pattern", managed).await?;

            harness.kill_operator();
            rollouts_api(harness).delete(MODEL, &DeleteParams::default()).await?;
            let gone = async || Ok(rollouts_api(harness).get_opt(MODEL).await?.is_none().then_some(()));
            wait_for("the Rollout is gone", gone).await?;

            harness.start_operator().await?;
            let cleared = async || Ok((read_directives(harness).await? == OperatorDirectives::default()).then_some(()));
            wait_for("the operator directives are empty", cleared).await?;
            // The id is unmanaged now: every server loads it immediately, as without Rollora.
            harness.list_adapter(V2).await?;
            harness.wait_for(loaded_everywhere(V2).and(served_by(MODEL, V1))).await?;
            harness.stop_clients_and_verify().await.map(drop)
        },
    );
}
