//! Replicas of ext-proc die, stand still and are counted anew, and the API server goes away: what was promised to
//! clients holds, and the operator says what it waits for.

use crate::objects::with_its_own_api_server;
use anyhow::{Result, ensure};
use rollora_api::{
    condition::{ConditionStatus, condition_type, reason},
    rollout::status::Phase,
};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, on_a_cluster},
    seen::{Condition, Seen, cleaned_up, every_server_is_ready, phase, served_by, split, succeeded},
    traffic::{Ask, Crowd, Kind},
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
async fn scaled(bed: &Bed<Cluster>, replicas: usize) -> Result<()> {
    bed.place.scale(EXT_PROC, replicas);
    let start = now();
    while bed.place.ext_procs().len() != replicas {
        ensure!(start.elapsed() < Duration::from_secs(20), "{} replicas", bed.place.ext_procs().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if replicas > 0 { bed.place.reaches_ext_proc().await } else { Ok(()) }
}

/// The status says that the weights are not in force yet, why, and these words.
fn waits(why: &'static str, words: &str) -> Condition {
    let words = words.to_owned();
    Condition::new(format!("TrafficApplied is not True: {why}, {words}"), move |seen: &Seen| {
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
    if !has_a_cluster("replicas of ext-proc are added and taken away") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(1500)).with_flags(&["--token-millis", "20"]);
    on_a_cluster(
        &setup,
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            // Streams that are longer than a replica's end takes.
            let (stream, whole) = (Ask::new(MODEL, Kind::Sse, 150), Ask::new(MODEL, Kind::Json, 1));
            let connections = [vec![stream; 3], vec![whole; 3]].concat();
            bed.clients_start(&Crowd { connections, pace: Duration::from_millis(20) });
            bed.list(V2).await?;
            bed.sees(split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            scaled(bed, 3).await?;
            bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            scaled(bed, 1).await?;
            bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
            let record = bed.clients_saw_nothing_wrong().await?;
            ensure!(record.routers.len() == 3, "two replicas and a third: {}", record.routers.len());
            Ok(())
        },
    );
}

#[test]
fn a_replica_that_is_killed_cuts_no_answer_that_streams() {
    if !has_a_cluster("a replica of ext-proc is killed") {
        return;
    }
    let setup = Setup::guide(Duration::from_millis(500)).with_flags(&["--token-millis", "10"]);
    on_a_cluster(
        &setup,
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            let stream = Ask::new(MODEL, Kind::Sse, 200);
            bed.clients_start(&Crowd { connections: vec![stream; 16], pace: Duration::from_millis(10) });
            // Everybody has had an answer, and is in the middle of another one.
            bed.clients_sent(16).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let killed = now();
            for replica in bed.place.ext_procs() {
                replica.kill();
            }
            bed.clients_sent(40).await?;
            let record = bed.clients_stop().await?;
            let streamed = |exchange: &&rollora_e2e::traffic::Exchange| {
                exchange.head.is_some_and(|head| head < killed) && exchange.end > killed
            };
            let streaming: Vec<_> = record.exchanges.iter().filter(streamed).collect();
            ensure!(streaming.len() >= 8, "only {} answers streamed when the replicas were killed", streaming.len());
            for exchange in streaming {
                ensure!(exchange.failure().is_none(), "an answer that streamed was cut: {:?}", exchange.failure());
            }
            // Who came while no replica was there was refused, not misled; and the replicas came back.
            let verdict = record.verdict();
            ensure!(verdict.unweighted.is_empty(), "{verdict}");
            bed.place.reaches_ext_proc().await?;
            let count = bed.count().await?;
            ensure!(count.of(V1) == 20, "{count}");
            Ok(())
        },
    );
}

#[test]
fn the_operator_waits_for_a_replica_that_cannot_be_asked_and_says_which() {
    if !has_a_cluster("a replica of ext-proc cannot be asked") {
        return;
    }
    on_a_cluster(
        &Setup::open_at_half(Duration::from_secs(1)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.list(V2).await?;
            bed.sees(split(MODEL, &[(V1, 90), (V2, 10)])).await?;
            let replica = bed.place.ext_procs().remove(1);
            replica.freeze();
            // The next weights are written, and not taken for being in force.
            bed.sees(waits(reason::ROUTERS_PENDING, replica.pod())).await?;
            let pending = waits(reason::ROUTERS_PENDING, replica.pod()).and(phase(Phase::Progressing));
            bed.keeps_seeing(Duration::from_millis(800), pending).await?;
            replica.thaw();
            bed.sees(split(MODEL, &[(V1, 50), (V2, 50)]).and(phase(Phase::Paused))).await?;

            // None at all proves nothing either.
            scaled(bed, 0).await?;
            bed.says(&["promote"]).await?;
            bed.sees(waits(reason::NO_ROUTERS, "rollora-ext-proc")).await?;
            scaled(bed, 2).await?;
            bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await.map(drop)
        },
    );
}

/// A replica that is deleted has as long to end as its scenario takes.
fn with_a_long_end(objects: &mut Manifests) -> Result<()> {
    let deployment = objects.object_mut("Deployment", EXT_PROC)?;
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(600);
    Ok(())
}

#[test]
fn a_replica_that_is_being_deleted_and_cannot_be_asked_is_waited_for_until_it_is_gone() {
    if !has_a_cluster("a replica of ext-proc that ends cannot be asked") {
        return;
    }
    let parts = async || Ok(Parts { change: Box::new(with_a_long_end), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        bed.sees_baseline().await?;
        let replica = bed.place.ext_procs().remove(0);
        replica.freeze();
        bed.place.delete_ext_proc(0).await?;
        // Only then clients begin: what it has in hand when it stands still gets no answer.
        bed.place.leaves_ext_proc(&replica).await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(V2).await?;
        // Others have the first weights. They are not taken for being in force: nobody knows by what it still routes.
        let first = || split(MODEL, &[(V1, 90), (V2, 10)]).and(phase(Phase::Progressing));
        let pending = || first().and(waits(reason::ROUTERS_PENDING, replica.pod()));
        bed.sees(pending()).await?;
        bed.keeps_seeing(Duration::from_millis(1500), pending()).await?;

        replica.kill();
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn while_the_api_server_is_away_traffic_goes_on_and_then_the_rollout_does() {
    if !has_a_cluster("the API server goes away") {
        return;
    }
    on_a_cluster(&Setup::guide(Duration::from_secs(1)), with_its_own_api_server, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(V2).await?;
        bed.sees(split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        bed.place.kill_api_server()?;
        // Longer than the pause: there is something to be done, and nobody who can be told.
        bed.keeps_seeing(Duration::from_secs(3), split(MODEL, &[(V1, 90), (V2, 10)])).await?;
        bed.place.start_api_server().await?;
        bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        bed.clients_sent(200).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

#[test]
fn a_server_that_is_deleted_while_clients_send_costs_nobody_an_answer() {
    if !has_a_cluster("a pod of vLLM is deleted") {
        return;
    }
    on_a_cluster(
        &Setup::open_at_half(Duration::from_millis(300)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(5)));
            bed.list(V2).await?;
            bed.sees(split(MODEL, &[(V1, 50), (V2, 50)])).await?;
            bed.delete_server(1).await?;
            bed.sees(every_server_is_ready()).await?;
            let verdict = bed.clients_saw_nothing_wrong().await?.verdict();
            ensure!(verdict.in_flight == 0, "{verdict}");
            Ok(())
        },
    );
}

#[test]
fn a_replica_that_is_killed_costs_little_more_than_what_it_was_asked() {
    if !has_a_cluster("one of two replicas of ext-proc is killed") {
        return;
    }
    let crowd = Crowd::mixed(MODEL, Duration::from_millis(5));
    let connections = crowd.connections.len();
    on_a_cluster(
        &Setup::guide(Duration::from_millis(500)),
        async || Ok(Parts::default()),
        async |bed| {
            bed.sees_baseline().await?;
            bed.clients_start(&crowd);
            bed.clients_sent(200).await?;
            bed.place.ext_procs().remove(0).kill();
            bed.clients_sent(800).await?;
            let verdict = bed.clients_stop().await?.verdict();
            // Envoy asks another replica where the dead one had not been asked yet.
            let lost = verdict.errors.len();
            ensure!(lost <= 3 * connections && verdict.unweighted.is_empty(), "{verdict}");
            Ok(())
        },
    );
}
