//! Replicas of ext-proc die, stand still and are counted anew, and the API server goes away: what was promised to
//! clients holds, and the operator says what it waits for.

use crate::cluster_objects::parts_with_own_api_server;
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

/// From now on there are so many replicas, and Envoy asks every one of them.
async fn scale_ext_proc(bed: &Harness<ClusterEnvironment>, replicas: usize) -> Result<()> {
    bed.environment.scale(EXT_PROC, replicas);
    let start = now();
    while bed.environment.ext_procs().len() != replicas {
        ensure!(start.elapsed() < Duration::from_secs(20), "{} replicas", bed.environment.ext_procs().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if replicas > 0 { bed.environment.wait_ext_proc_routed().await } else { Ok(()) }
}

/// The status says that the weights are not in force yet, why, and these words.
fn traffic_not_applied(why: &'static str, words: &str) -> WaitCondition {
    let words = words.to_owned();
    WaitCondition::new(format!("TrafficApplied is not True: {why}, {words}"), move |seen: &SystemSnapshot| {
        let Ok(status) = &seen.status else { return false };
        status.conditions.iter().any(|condition| {
            condition.type_ == condition_type::TRAFFIC_APPLIED
                && condition.status != ConditionStatus::True
                && condition.reason == why
                && condition.message.contains(&words)
        })
    })
}

#[test]
fn replicas_are_added_and_taken_away_and_no_client_notices() {
    if !cluster_tools_available("replicas of ext-proc are added and taken away") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(1500)).with_flags(&["--token-millis", "20"]);
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            // Streams that are longer than a replica's end takes.
            let (stream, whole) =
                (ChatRequest::new(MODEL, ResponseMode::Sse, 150), ChatRequest::new(MODEL, ResponseMode::Json, 1));
            let connections = [vec![stream; 3], vec![whole; 3]].concat();
            bed.start_clients(&LoadProfile { connections, interval: Duration::from_millis(20) });
            bed.list_adapter(V2).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            scale_ext_proc(bed, 3).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            scale_ext_proc(bed, 1).await?;
            bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            let record = bed.stop_clients_and_verify().await?;
            ensure!(record.routers.len() == 3, "two replicas and a third: {}", record.routers.len());
            Ok(())
        },
    );
}

#[test]
fn a_replica_that_is_killed_cuts_no_answer_that_streams() {
    if !cluster_tools_available("a replica of ext-proc is killed") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(500)).with_flags(&["--token-millis", "10"]);
    run_on_cluster(
        &setup,
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            let stream = ChatRequest::new(MODEL, ResponseMode::Sse, 200);
            bed.start_clients(&LoadProfile { connections: vec![stream; 16], interval: Duration::from_millis(10) });
            // Everybody has had an answer, and is in the middle of another one.
            bed.wait_for_requests(16).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let killed = now();
            for replica in bed.environment.ext_procs() {
                replica.kill();
            }
            bed.wait_for_requests(40).await?;
            let record = bed.stop_clients().await?;
            let streamed = |exchange: &&rollora_e2e::traffic::RequestRecord| {
                exchange.first_byte.is_some_and(|head| head < killed) && exchange.end > killed
            };
            let streaming: Vec<_> = record.exchanges.iter().filter(streamed).collect();
            ensure!(streaming.len() >= 8, "only {} answers streamed when the replicas were killed", streaming.len());
            for exchange in streaming {
                ensure!(exchange.failure().is_none(), "an answer that streamed was cut: {:?}", exchange.failure());
            }
            // Who came while no replica was there was refused, not misled; and the replicas came back.
            let verdict = record.verdict();
            ensure!(verdict.zero_weight_answers.is_empty(), "{verdict}");
            bed.environment.wait_ext_proc_routed().await?;
            let count = bed.count_split().await?;
            ensure!(count.of(V1) == 20, "{count}");
            Ok(())
        },
    );
}

#[test]
fn the_operator_waits_for_a_replica_that_cannot_be_asked_and_says_which() {
    if !cluster_tools_available("a replica of ext-proc cannot be asked") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_secs(1)),
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            bed.list_adapter(V2).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            let replica = bed.environment.ext_procs().remove(1);
            replica.freeze();
            // The next weights are written, and not taken for being in force.
            bed.wait_for(traffic_not_applied(reason::ROUTERS_PENDING, replica.pod())).await?;
            let pending =
                traffic_not_applied(reason::ROUTERS_PENDING, replica.pod()).and(has_phase(Phase::Progressing));
            bed.assert_holds_for(Duration::from_millis(800), pending).await?;
            replica.thaw();
            bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;

            // None at all proves nothing either.
            scale_ext_proc(bed, 0).await?;
            bed.cli_stdout(&["promote"]).await?;
            bed.wait_for(traffic_not_applied(reason::NO_ROUTERS, "rollora-ext-proc")).await?;
            scale_ext_proc(bed, 2).await?;
            bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await.map(drop)
        },
    );
}

/// A replica that is deleted has as long to end as its scenario takes.
fn with_long_grace_period(objects: &mut Manifests) -> Result<()> {
    let deployment = objects.object_mut("Deployment", EXT_PROC)?;
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(600);
    Ok(())
}

#[test]
fn a_replica_that_is_being_deleted_and_cannot_be_asked_is_waited_for_until_it_is_gone() {
    if !cluster_tools_available("a replica of ext-proc that ends cannot be asked") {
        return;
    }
    let parts =
        async || Ok(ClusterOptions { patch_manifests: Box::new(with_long_grace_period), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        bed.wait_for_baseline().await?;
        let replica = bed.environment.ext_procs().remove(0);
        replica.freeze();
        bed.environment.delete_ext_proc(0).await?;
        // Only then clients begin: what it has in hand when it stands still gets no answer.
        bed.environment.wait_ext_proc_unrouted(&replica).await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        bed.list_adapter(V2).await?;
        // Others have the first weights. They are not taken for being in force: nobody knows by what it still routes.
        let first = || traffic_split(MODEL, &[(V1, 90), (V2, 10)]).and(has_phase(Phase::Progressing));
        let pending = || first().and(traffic_not_applied(reason::ROUTERS_PENDING, replica.pod()));
        bed.wait_for(pending()).await?;
        bed.assert_holds_for(Duration::from_millis(1500), pending()).await?;

        replica.kill();
        bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn while_the_api_server_is_away_traffic_goes_on_and_then_the_rollout_does() {
    if !cluster_tools_available("the API server goes away") {
        return;
    }
    run_on_cluster(&Setup::guide(Duration::from_secs(1)), parts_with_own_api_server, async |bed| {
        bed.wait_for_baseline().await?;
        bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        bed.list_adapter(V2).await?;
        bed.wait_for(traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        bed.environment.kill_api_server()?;
        // Longer than the pause: there is something to be done, and nobody who can be told.
        bed.assert_holds_for(Duration::from_secs(3), traffic_split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        bed.environment.start_api_server().await?;
        bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        bed.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.wait_for_requests(200).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}

#[test]
fn a_server_that_is_deleted_while_clients_send_costs_nobody_an_answer() {
    if !cluster_tools_available("a pod of vLLM is deleted") {
        return;
    }
    run_on_cluster(
        &Setup::pause_at_half(Duration::from_millis(300)),
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(5)));
            bed.list_adapter(V2).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            bed.delete_server(1).await?;
            bed.wait_for(all_servers_ready()).await?;
            let verdict = bed.stop_clients_and_verify().await?.verdict();
            ensure!(verdict.in_flight == 0, "{verdict}");
            Ok(())
        },
    );
}

#[test]
fn a_replica_that_is_killed_costs_little_more_than_what_it_was_asked() {
    if !cluster_tools_available("one of two replicas of ext-proc is killed") {
        return;
    }
    let crowd = LoadProfile::mixed(MODEL, Duration::from_millis(5));
    let connections = crowd.connections.len();
    run_on_cluster(
        &Setup::guide(Duration::from_millis(500)),
        async || Ok(ClusterOptions::default()),
        async |bed| {
            bed.wait_for_baseline().await?;
            bed.start_clients(&crowd);
            bed.wait_for_requests(200).await?;
            bed.environment.ext_procs().remove(0).kill();
            bed.wait_for_requests(800).await?;
            let verdict = bed.stop_clients().await?.verdict();
            // Envoy asks another replica where the dead one had not been asked yet.
            let lost = verdict.errors.len();
            ensure!(lost <= 3 * connections && verdict.zero_weight_answers.is_empty(), "{verdict}");
            Ok(())
        },
    );
}
