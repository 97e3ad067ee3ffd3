//! What only pods do: their ConfigMap comes late, and they are deleted and replaced.

use anyhow::{Result, ensure};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{all_servers_ready, cleaned_up, served_by, succeeded, traffic_split},
    harness::{Environment as _, Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::{ChatRequest, LoadProfile, ResponseMode},
};
use rollora_testbed::{
    gateway::RequestBodyMode,
    guide::{MODEL, V1, V2},
    server::{ServerKind, VllmServer},
};
use std::time::Duration;

fn start_clients(bed: &mut Harness<ClusterEnvironment>) {
    bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
}

/// The guide from the edit to the end.
async fn run_rollout(bed: &Harness<ClusterEnvironment>, limit: Duration) -> Result<()> {
    bed.list_adapter(V2).await?;
    bed.wait_for_within(limit, traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
    bed.wait_for_within(limit, cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await.map(drop)
}

#[test]
fn a_kubelet_that_brings_the_config_map_late_delays_everything_and_breaks_nothing() {
    if !cluster_tools_available("a kubelet that brings the ConfigMap late") {
        return;
    }
    let parts = async || Ok(ClusterOptions { projection_delay: Duration::from_secs(4), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.wait_for_within(Duration::from_mins(1), served_by(MODEL, V1).and(all_servers_ready())).await?;
        start_clients(bed);
        run_rollout(bed, Duration::from_mins(1)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn a_sidecar_that_watches_its_config_map_waits_for_no_kubelet() {
    if !cluster_tools_available("sidecars that watch their ConfigMap") {
        return;
    }
    // Longer than the whole scenario: nothing that arrives came by a mount.
    let parts = async || {
        let manifests = vec!["operator-one-namespace", "ext-proc", "vllm-watch"];
        Ok(ClusterOptions { manifests, projection_delay: Duration::from_mins(10), ..ClusterOptions::default() })
    };
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.wait_for_baseline().await?;
        start_clients(bed);
        run_rollout(bed, Duration::from_secs(30)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn an_envoy_that_buffers_bodies_serves_the_guide_too() {
    if !cluster_tools_available("an Envoy that buffers bodies") {
        return;
    }
    let parts =
        async || Ok(ClusterOptions { request_body_mode: RequestBodyMode::Buffered, ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), parts, async |bed| {
        bed.wait_for_baseline().await?;
        start_clients(bed);
        run_rollout(bed, Duration::from_secs(30)).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn a_pod_that_is_replaced_in_the_middle_gets_requests_when_it_has_what_serves() {
    if !cluster_tools_available("a pod that is replaced") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_millis(300)),
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            start_clients(bed);
            bed.list_adapter(V2).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let before: Vec<_> = bed.environment.servers().iter().map(VllmServer::name).collect();
            bed.delete_server(1).await?;
            bed.wait_for(all_servers_ready()).await?;
            let after: Vec<_> = bed.environment.servers().iter().map(VllmServer::name).collect();
            ensure!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2], "{before:?} {after:?}");
            bed.assert_holds_for(Duration::from_millis(500), traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let adapters = bed.environment.servers()[1].loaded_adapters().await?;
            ensure!(adapters.contains(V1) && adapters.contains(V2), "the new pod has {adapters:?}");
            // Had it been asked before it had both, a client would have seen a 404.
            bed.stop_clients_and_verify().await.map(drop)
        },
    );
}

#[test]
fn replicas_of_ext_proc_come_and_go_and_no_client_notices() {
    if !cluster_tools_available("replicas of ext-proc come and go") {
        return;
    }
    let servers = vec![ServerKind::simulated(&["--token-millis", "20"]); 3];
    let setup = Setup { servers, ..Setup::guide(Duration::from_millis(1500)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            // Streams that are longer than a replica's end takes.
            let stream = ChatRequest::new(MODEL, ResponseMode::Sse, 200);
            let whole = ChatRequest::new(MODEL, ResponseMode::Json, 1);
            let connections = [vec![stream; 4], vec![whole; 3]].concat();
            bed.start_clients(&LoadProfile { connections, interval: Duration::from_millis(20) });
            bed.list_adapter(V2).await?;
            for (old, new) in [(90, 10), (50, 50)] {
                bed.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
                bed.environment.delete_ext_proc(0).await?;
                bed.environment.wait_ext_proc_routed().await?;
            }
            bed.wait_for(served_by(MODEL, V2)).await?;
            bed.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
            let record = bed.stop_clients_and_verify().await?;
            ensure!(record.routers.len() == 4, "two replicas and their two successors: {}", record.routers.len());
            Ok(())
        },
    );
}
