//! A Rollout leaves, and takes along what it has written into the adapters ConfigMap, also where nobody saw it go.

use crate::objects::{rollouts, until};
use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::DeleteParams};
use rollora_api::{names::DIRECTIVES_KEY, operator_directives::OperatorDirectives};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{loaded_everywhere, served_by},
    traffic::Crowd,
};
use rollora_testbed::guide::{ADAPTERS_CONFIG_MAP, MODEL, V1, V2};
use std::time::Duration;

async fn key(bed: &Bed<Cluster>) -> Result<OperatorDirectives> {
    let maps: Api<ConfigMap> = Api::namespaced(bed.place.client(), bed.place.namespace());
    let data = maps.get(ADAPTERS_CONFIG_MAP).await?.data.unwrap_or_default();
    Ok(OperatorDirectives::parse(data.get(DIRECTIVES_KEY).map_or("", String::as_str))?)
}

#[test]
fn what_was_deleted_while_no_operator_ran_leaves_nothing_that_adapters_wait_for() {
    if !has_a_cluster("a Rollout is deleted while no operator runs") {
        return;
    }
    on_a_cluster(
        &Setup::guide(Duration::from_millis(200)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
            let governs = async || Ok((!key(bed).await?.managed.is_empty()).then_some(()));
            until("the operator's key governs the pattern", governs).await?;

            bed.kill_operator();
            rollouts(bed).delete(MODEL, &DeleteParams::default()).await?;
            let gone = async || Ok(rollouts(bed).get_opt(MODEL).await?.is_none().then_some(()));
            until("the Rollout is gone", gone).await?;

            bed.start_operator().await?;
            let cleared = async || Ok((key(bed).await? == OperatorDirectives::default()).then_some(()));
            until("the operator's key is empty", cleared).await?;
            // Nobody governs it: every server loads it at once, as without Rollora.
            bed.list(V2).await?;
            bed.sees(loaded_everywhere(V2).and(served_by(MODEL, V1))).await?;
            bed.clients_saw_nothing_wrong().await.map(drop)
        },
    );
}
