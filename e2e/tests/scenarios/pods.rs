//! Behavior of pods: their ConfigMap arrives late, and they are deleted and replaced.

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

fn start_clients(harness: &mut Harness<ClusterEnvironment>) {
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
}

/// Runs the guide from the edit to the end.
async fn run_rollout(harness: &Harness<ClusterEnvironment>, limit: Duration) -> Result<()> {
    harness.list_adapter(V2).await?;
    harness.wait_for_within(limit, traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
    harness.wait_for_within(limit, cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await.map(drop)
}

#[test]
fn late_config_map_projection_only_delays_the_rollout() {
    if !cluster_tools_available("a kubelet that brings the ConfigMap late") {
        return;
    }
    let options = async || Ok(ClusterOptions { projection_delay: Duration::from_secs(4), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), options, async |harness| {
        harness.wait_for_within(Duration::from_mins(1), served_by(MODEL, V1).and(all_servers_ready())).await?;
        start_clients(harness);
        run_rollout(harness, Duration::from_mins(1)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn watching_sidecar_does_not_wait_for_the_kubelet() {
    if !cluster_tools_available("sidecars that watch their ConfigMap") {
        return;
    }
    // Longer than the whole scenario: no content arrives through a mount.
    let options = async || {
        let manifests = vec!["operator-one-namespace", "ext-proc", "vllm-watch"];
        Ok(ClusterOptions { manifests, projection_delay: Duration::from_mins(10), ..ClusterOptions::default() })
    };
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), options, async |harness| {
        harness.wait_for_baseline().await?;
        start_clients(harness);
        run_rollout(harness, Duration::from_secs(30)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn guide_completes_with_buffered_request_bodies() {
    if !cluster_tools_available("an Envoy that buffers bodies") {
        return;
    }
    let options =
        async || Ok(ClusterOptions { request_body_mode: RequestBodyMode::Buffered, ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(500)), options, async |harness| {
        harness.wait_for_baseline().await?;
        start_clients(harness);
        run_rollout(harness, Duration::from_secs(30)).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn replaced_pod_gets_requests_once_it_has_the_adapters() {
    if !cluster_tools_available("a pod that is replaced") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_millis(300)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            start_clients(harness);
            harness.list_adapter(V2).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let before: Vec<_> = harness.environment.servers().iter().map(VllmServer::name).collect();
            harness.delete_server(1).await?;
            harness.wait_for(all_servers_ready()).await?;
            let after: Vec<_> = harness.environment.servers().iter().map(VllmServer::name).collect();
            ensure!(before[0] == after[0] && before[1] != after[1] && before[2] == after[2], "{before:?} {after:?}");
            harness.assert_holds_for(Duration::from_millis(500), traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            let adapters = harness.environment.servers()[1].loaded_adapters().await?;
            ensure!(adapters.contains(V1) && adapters.contains(V2), "the new pod has {adapters:?}");
            // Requests to the pod before it had both adapters would have failed with 404.
            harness.stop_clients_and_verify().await.map(drop)
        },
    );
}

#[test]
fn replaced_ext_proc_replicas_fail_no_request() {
    if !cluster_tools_available("replicas of ext-proc come and go") {
        return;
    }
    let servers = vec![ServerKind::simulated(&["--token-millis", "20"]); 3];
    let setup = Setup { servers, ..Setup::guide(Duration::from_millis(1500)) };
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            // The streams last longer than the termination of a replica.
            let stream = ChatRequest::new(MODEL, ResponseMode::Sse, 200);
            let whole = ChatRequest::new(MODEL, ResponseMode::Json, 1);
            let connections = [vec![stream; 4], vec![whole; 3]].concat();
            harness.start_clients(&LoadProfile { connections, interval: Duration::from_millis(20) });
            harness.list_adapter(V2).await?;
            for (old, new) in [(90, 10), (50, 50)] {
                harness.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
                harness.environment.delete_ext_proc(0).await?;
                harness.environment.wait_ext_proc_routed().await?;
            }
            harness.wait_for(served_by(MODEL, V2)).await?;
            harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
            let record = harness.stop_clients_and_verify().await?;
            ensure!(record.routers.len() == 4, "expected two replicas and two replacements: {}", record.routers.len());
            Ok(())
        },
    );
}
