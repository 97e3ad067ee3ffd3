//! A server loses the adapter that serves, and goes on running: people are told which server it is.

use crate::objects::Said;
use anyhow::Result;
use rollora_api::{
    condition::{ConditionStatus, condition_type::ADAPTER_RESIDENT, reason},
    names::AdapterId,
};
use rollora_e2e::{
    bed::{Bed, Place as _, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{Condition, Seen, cleaned_up, every_server_is_ready, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use serde_json::json;
use std::time::Duration;

/// Whether every Ready server has what serves, as the status says it.
fn resident(status: ConditionStatus) -> Condition {
    Condition::new(format!("{ADAPTER_RESIDENT} is {status:?}"), move |seen: &Seen| {
        let conditions = seen.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == ADAPTER_RESIDENT && condition.status == status)
    })
}

/// The sidecar of a server says whether v2 is proven there.
fn sidecar_says(index: usize, verified: bool) -> Condition {
    Condition::new(format!("the sidecar of server {index} says of {V2}: verified {verified}"), move |seen: &Seen| {
        let id = AdapterId::new(V2).ok();
        let sidecar = seen.servers.get(index).and_then(|server| server.sidecar.as_ref());
        id.zip(sidecar).is_some_and(|(id, sidecar)| sidecar.is_verified(&id) == verified)
    })
}

/// For a moment a server is not Ready, because its sidecar starts again, and looks at once. A Rollout at rest asks a server
/// when its pod becomes Ready, and nobody at any other time.
async fn becomes_ready_again(bed: &Bed<Cluster>, index: usize) -> Result<()> {
    let sidecar = bed.place.sidecar(index)?;
    sidecar.kill_and_hold();
    let is_away = Condition::new(format!("server {index} is not Ready"), move |seen: &Seen| {
        seen.servers.get(index).is_some_and(|server| !server.ready)
    });
    bed.sees(is_away).await?;
    sidecar.release();
    bed.sees(every_server_is_ready()).await.map(drop)
}

#[test]
fn a_server_that_loses_what_serves_without_dying_is_named_until_it_has_it_again() {
    if !has_a_cluster("a server loses the adapter that serves") {
        return;
    }
    on_a_cluster(
        &Setup::guide(Duration::from_millis(200)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
            bed.list(V2).await?;
            bed.sees(cleaned_up(V1).and(succeeded(V2)).and(resident(ConditionStatus::True))).await?;
            bed.clients_saw_nothing_wrong().await?;

            let server = &bed.place.servers()[1];
            server.patch_knobs(json!({ "fail_load": { V2: "500" } })).await?;
            server.unload_adapter(V2).await?;
            let name = server.name();
            becomes_ready_again(bed, 1).await?;
            bed.sees(sidecar_says(1, false)).await?;
            bed.sees(resident(ConditionStatus::False).and(every_server_is_ready())).await?;
            let words = [name.as_str(), V2];
            Said { condition: ADAPTER_RESIDENT, reason: reason::NOT_RESIDENT, words: &words }
                .is_told(bed, MODEL)
                .await?;

            server.patch_knobs(json!({ "fail_load": {} })).await?;
            bed.sees(sidecar_says(1, true)).await?;
            // Its pod was Ready all the time: no change of it tells anybody.
            bed.sees(resident(ConditionStatus::True)).await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
            bed.clients_sent(100).await?;
            bed.clients_saw_nothing_wrong().await.map(drop)
        },
    );
}
