//! What only pods do: their ConfigMap comes late, and they are deleted and replaced.

use anyhow::{Result, ensure};
use rollora_e2e::{
    bed::{Bed, Place as _, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{cleaned_up, every_server_is_ready, served_by, split, succeeded},
    traffic::{Ask, Crowd, Kind},
};
use rollora_testbed::{
    gateway::RequestBodyMode,
    guide::{MODEL, V1, V2},
    server::{ServerKind, VllmServer},
};
use std::time::Duration;

fn with_clients(bed: &mut Bed<Cluster>) {
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
}

/// The guide from the edit to the end.
async fn rolled_out(bed: &Bed<Cluster>, limit: Duration) -> Result<()> {
    bed.list(V2).await?;
    bed.sees_within(limit, split(MODEL, &[(V1, 90), (V2, 10)])).await?;
    bed.sees_within(limit, cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await.map(drop)
}

#[test]
fn a_kubelet_that_brings_the_config_map_late_delays_everything_and_breaks_nothing() {
    if !has_a_cluster("a kubelet that brings the ConfigMap late") {
        return;
    }
    let parts = async || Ok(Parts { projection_delay: Duration::from_secs(4), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.sees_within(Duration::from_mins(1), served_by(MODEL, V1).and(every_server_is_ready())).await?;
        with_clients(bed);
        rolled_out(bed, Duration::from_mins(1)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn a_sidecar_that_watches_its_config_map_waits_for_no_kubelet() {
    if !has_a_cluster("sidecars that watch their ConfigMap") {
        return;
    }
    // Longer than the whole scenario: nothing that arrives came by a mount.
    let parts = async || {
        let manifests = vec!["operator-one-namespace", "ext-proc", "vllm-watch"];
        Ok(Parts { manifests, projection_delay: Duration::from_mins(10), ..Parts::default() })
    };
    on_a_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.sees_baseline().await?;
        with_clients(bed);
        rolled_out(bed, Duration::from_secs(30)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn an_envoy_that_buffers_bodies_serves_the_guide_too() {
    if !has_a_cluster("an Envoy that buffers bodies") {
        return;
    }
    let parts = async || Ok(Parts { bodies: RequestBodyMode::Buffered, ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.sees_baseline().await?;
        with_clients(bed);
        rolled_out(bed, Duration::from_secs(30)).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn a_pod_that_is_replaced_in_the_middle_gets_requests_when_it_has_what_serves() {
    if !has_a_cluster("a pod that is replaced") {
        return;
    }
    on_a_cluster(
        &Setup::open_at_half(Duration::from_millis(300)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            with_clients(bed);
            bed.list(V2).await?;
            bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let before: Vec<_> = bed.place.servers().iter().map(VllmServer::name).collect();
            bed.delete_server(1).await?;
            bed.sees(every_server_is_ready()).await?;
            let after: Vec<_> = bed.place.servers().iter().map(VllmServer::name).collect();
            ensure!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2], "{before:?} {after:?}");
            bed.keeps_seeing(Duration::from_millis(500), split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let adapters = bed.place.servers()[1].loaded_adapters().await?;
            ensure!(adapters.contains(V1) && adapters.contains(V2), "the new pod has {adapters:?}");
            // Had it been asked before it had both, a client would have seen a 404.
            bed.clients_saw_nothing_wrong().await.map(drop)
        },
    );
}

#[test]
fn replicas_of_ext_proc_come_and_go_and_no_client_notices() {
    if !has_a_cluster("replicas of ext-proc come and go") {
        return;
    }
    let servers = vec![ServerKind::simulated(&["--token-millis", "20"]); 3];
    let setup = Setup { servers, ..Setup::guide(Duration::from_millis(1500)) };
    on_a_cluster(
        &setup,
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            // Streams that are longer than a replica's end takes.
            let stream = Ask::new(MODEL, Kind::Sse, 200);
            let whole = Ask::new(MODEL, Kind::Json, 1);
            let connections = [vec![stream; 4], vec![whole; 3]].concat();
            bed.clients_start(&Crowd { connections, pace: Duration::from_millis(20) });
            bed.list(V2).await?;
            for (old, new) in [(90, 10), (50, 50)] {
                bed.sees(split(MODEL, &[(V1, old), (V2, new)])).await?;
                bed.place.delete_ext_proc(0).await?;
                bed.place.reaches_ext_proc().await?;
            }
            bed.sees(served_by(MODEL, V2)).await?;
            bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
            let record = bed.clients_saw_nothing_wrong().await?;
            ensure!(record.routers.len() == 4, "two replicas and their two successors: {}", record.routers.len());
            Ok(())
        },
    );
}
