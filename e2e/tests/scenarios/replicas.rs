//! Replicas of ext-proc are killed, frozen and scaled, and the API server is away: clients lose nothing they must not
//! lose, and the operator reports what it waits for.

use crate::cluster_objects::options_with_own_api_server;
use anyhow::{Result, ensure};
use rollora_api::{
    condition::{ConditionStatus, condition_type, reason},
    rollout::status::Phase,
};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::{
        SystemSnapshot, WaitCondition, all_servers_ready, cleaned_up, has_phase, served_by, succeeded, traffic_split,
    },
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, run_on_cluster},
    traffic::{ChatRequest, LoadProfile, ResponseMode},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    manifests::Manifests,
};
use serde_json::json;
use std::time::{Duration, Instant};

const EXT_PROC: &str = "rollora-ext-proc";

#[expect(clippy::disallowed_methods, reason = "when a replica was killed")]
fn now() -> Instant {
    Instant::now()
}

/// Sets the number of replicas, and waits until Envoy routes through all of them.
async fn scale_ext_proc(harness: &Harness<ClusterEnvironment>, replicas: usize) -> Result<()> {
    harness.environment.scale(EXT_PROC, replicas);
    let start = now();
    while harness.environment.ext_procs().len() != replicas {
        ensure!(start.elapsed() < Duration::from_secs(20), "{} replicas", harness.environment.ext_procs().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if replicas > 0 { harness.environment.wait_ext_proc_routed().await } else { Ok(()) }
}

/// Holds if `TrafficApplied` is not True for this reason, with these words in its message.
fn traffic_not_applied(reason: &'static str, words: &str) -> WaitCondition {
    let words = words.to_owned();
    WaitCondition::new(format!("TrafficApplied is not True: {reason}, {words}"), move |snapshot: &SystemSnapshot| {
        let Ok(status) = &snapshot.status else { return false };
        status.conditions.iter().any(|condition| {
            condition.type_ == condition_type::TRAFFIC_APPLIED
                && condition.status != ConditionStatus::True
                && condition.reason == reason
                && condition.message.contains(&words)
        })
    })
}

#[test]
fn scaling_ext_proc_fails_no_request() {
    if !cluster_tools_available("replicas of ext-proc are added and taken away") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(1500)).with_flags(&["--token-millis", "20"]);
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            // The streams last longer than the termination of a replica.
            let (stream, whole) =
                (ChatRequest::new(MODEL, ResponseMode::Sse, 150), ChatRequest::new(MODEL, ResponseMode::Json, 1));
            let connections = [vec![stream; 3], vec![whole; 3]].concat();
            harness.start_clients(&LoadProfile { connections, interval: Duration::from_millis(20) });
            harness.list_adapter(V2).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            scale_ext_proc(harness, 3).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            scale_ext_proc(harness, 1).await?;
            harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            let record = harness.stop_clients_and_verify().await?;
            ensure!(record.routers.len() == 3, "expected two replicas and a third: {}", record.routers.len());
            Ok(())
        },
    );
}

#[test]
fn killed_ext_proc_replica_truncates_no_stream() {
    if !cluster_tools_available("a replica of ext-proc is killed") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(500)).with_flags(&["--token-millis", "10"]);
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            let stream = ChatRequest::new(MODEL, ResponseMode::Sse, 200);
            harness.start_clients(&LoadProfile { connections: vec![stream; 16], interval: Duration::from_millis(10) });
            // Every client has received one response and is in the middle of the next.
            harness.wait_for_requests(16).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let killed = now();
            for replica in harness.environment.ext_procs() {
                replica.kill();
            }
            harness.wait_for_requests(40).await?;
            let record = harness.stop_clients().await?;
            let streamed = |request: &&rollora_e2e::traffic::RequestRecord| {
                request.first_byte.is_some_and(|head| head < killed) && request.end > killed
            };
            let streaming: Vec<_> = record.exchanges.iter().filter(streamed).collect();
            ensure!(streaming.len() >= 8, "only {} answers streamed when the replicas were killed", streaming.len());
            for request in streaming {
                ensure!(request.failure().is_none(), "a running stream was truncated: {:?}", request.failure());
            }
            // Requests that found no replica were refused and not misrouted, and the replicas came back.
            let verdict = record.verdict();
            ensure!(verdict.zero_weight_answers.is_empty(), "{verdict}");
            harness.environment.wait_ext_proc_routed().await?;
            let count = harness.count_split().await?;
            ensure!(count.of(V1) == 20, "{count}");
            Ok(())
        },
    );
}

#[test]
fn unreachable_ext_proc_replica_blocks_the_next_step() {
    if !cluster_tools_available("a replica of ext-proc cannot be asked") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_secs(1)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.list_adapter(V2).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            let replica = harness.environment.ext_procs().remove(1);
            replica.freeze();
            // The next weights are written, but not regarded as active.
            harness.wait_for(traffic_not_applied(reason::ROUTERS_PENDING, replica.pod())).await?;
            let pending =
                traffic_not_applied(reason::ROUTERS_PENDING, replica.pod()).and(has_phase(Phase::Progressing));
            harness.assert_holds_for(Duration::from_millis(800), pending).await?;
            replica.thaw();
            harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;

            // A lack of any replica does not confirm the weights either.
            scale_ext_proc(harness, 0).await?;
            harness.cli_stdout(&["promote"]).await?;
            harness.wait_for(traffic_not_applied(reason::NO_ROUTERS, "rollora-ext-proc")).await?;
            scale_ext_proc(harness, 2).await?;
            harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await.map(drop)
        },
    );
}

/// Gives a deleted replica longer to terminate than the scenario takes.
fn with_long_grace_period(objects: &mut Manifests) -> Result<()> {
    let deployment = objects.object_mut("Deployment", EXT_PROC)?;
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(600);
    Ok(())
}

#[test]
fn unreachable_terminating_replica_blocks_the_next_step() {
    if !cluster_tools_available("a replica of ext-proc that ends cannot be asked") {
        return;
    }
    let options =
        async || Ok(ClusterOptions { patch_manifests: Box::new(with_long_grace_period), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), options, async |harness| {
        harness.wait_for_baseline().await?;
        let replica = harness.environment.ext_procs().remove(0);
        replica.freeze();
        harness.environment.delete_ext_proc(0).await?;
        // Clients start only now: requests in flight at the frozen replica get no response.
        harness.environment.wait_ext_proc_unrouted(&replica).await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(V2).await?;
        // The other replica has the first weights. They are not regarded as active, because the frozen replica may
        // still route by others.
        let first = || traffic_split(MODEL, &[(V1, 90), (V2, 10)]).and(has_phase(Phase::Progressing));
        let pending = || first().and(traffic_not_applied(reason::ROUTERS_PENDING, replica.pod()));
        harness.wait_for(pending()).await?;
        harness.assert_holds_for(Duration::from_millis(1500), pending()).await?;

        replica.kill();
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn rollout_continues_after_an_api_server_outage() {
    if !cluster_tools_available("the API server goes away") {
        return;
    }
    run_on_cluster(&Setup::guide(Duration::from_secs(1)), options_with_own_api_server, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(V2).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        harness.environment.kill_api_server()?;
        // Longer than the pause: a step is due, and the API server cannot accept it.
        harness.assert_holds_for(Duration::from_secs(3), traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        harness.environment.start_api_server().await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        harness.wait_for_requests(200).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn deleted_server_fails_no_request() {
    if !cluster_tools_available("a pod of vLLM is deleted") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_millis(300)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(5)));
            harness.list_adapter(V2).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            harness.delete_server(1).await?;
            harness.wait_for(all_servers_ready()).await?;
            let verdict = harness.stop_clients_and_verify().await?.verdict();
            ensure!(verdict.in_flight == 0, "{verdict}");
            Ok(())
        },
    );
}

#[test]
fn killed_ext_proc_replica_fails_few_requests() {
    if !cluster_tools_available("one of two replicas of ext-proc is killed") {
        return;
    }
    let load = LoadProfile::mixed(MODEL, Duration::from_millis(5));
    let connections = load.connections.len();
    run_on_cluster(
        &Setup::guide(Duration::from_millis(500)),
        async || Ok(ClusterOptions::default()),
        async |harness| {
            harness.wait_for_baseline().await?;
            harness.start_clients(&load);
            harness.wait_for_requests(200).await?;
            harness.environment.ext_procs().remove(0).kill();
            harness.wait_for_requests(800).await?;
            let verdict = harness.stop_clients().await?.verdict();
            // Envoy retries with another replica if it had not sent the request to the dead one yet.
            let lost = verdict.errors.len();
            ensure!(lost <= 3 * connections && verdict.zero_weight_answers.is_empty(), "{verdict}");
            Ok(())
        },
    );
}
