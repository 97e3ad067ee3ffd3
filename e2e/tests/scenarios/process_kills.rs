//! Processes are killed without warning, and the rollout reaches the same end state.
//!
//! A request in flight at a process when it was killed, and a connection that the only gateway refused while it was
//! dead, are counted apart. Every other request without a response is an error.

use crate::run_stats::{VerdictSum, print_line};
use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::{
    conditions::{all_servers_ready, cleaned_up, served_by, succeeded, traffic_split},
    harness::{Environment, Harness, Setup},
    oracle::TrafficVerdict,
    scenario::{long_tests_enabled, run_on},
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::in_both_environments!(
    one_random_operator_kill_does_not_change_the_outcome,
    repeated_operator_kills_do_not_change_the_outcome,
    server_kill_at_each_step_costs_only_requests_in_flight,
);

/// Parameters of one run. In the long schedule each run has at least 2,000 requests.
#[derive(Clone, Copy)]
struct KillRun {
    pause: Duration,
    /// From the edit of the file to the end of the cleanup, as measured with this pause.
    expected_duration: Duration,
    interval: Duration,
    requests: usize,
}

impl KillRun {
    fn for_schedule() -> Self {
        let millis = Duration::from_millis;
        if long_tests_enabled() {
            Self { pause: millis(1500), expected_duration: millis(6500), interval: millis(6), requests: 2000 }
        } else {
            Self { pause: millis(800), expected_duration: millis(4500), interval: millis(20), requests: 200 }
        }
    }
}

fn one_random_operator_kill_does_not_change_the_outcome<E: Environment>() {
    let (seeds, run) = (if long_tests_enabled() { 0..50 } else { 0..2 }, KillRun::for_schedule());
    let mut sum = VerdictSum::default();
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let moment = random.random_range(Duration::ZERO..run.expected_duration);
        let away = random.random_range(Duration::ZERO..Duration::from_millis(300));
        run_on::<E>(&Setup::guide(run.pause), async |harness| {
            let verdict = run_guide_with_kills(harness, run, [(moment, away)]).await?;
            if long_tests_enabled() {
                print_line(&format!("kill, seed {seed}: {moment:.1?} after the edit, away for {away:.1?}: {verdict}"));
            }
            sum.add(verdict);
            Ok(())
        });
    }
    sum.print("the guide with one kill of rollora local");
}

fn repeated_operator_kills_do_not_change_the_outcome<E: Environment>() {
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    let kills = std::iter::repeat_with(|| {
        let moment = random.random_range(Duration::ZERO..Duration::from_millis(1200));
        (moment, random.random_range(Duration::ZERO..Duration::from_millis(100)))
    });
    let kills: Vec<_> = kills.take(8).collect();
    let run = KillRun::for_schedule();
    run_on::<E>(&Setup::guide(run.pause), async |harness| run_guide_with_kills(harness, run, kills).await.map(drop));
}

/// Lists v2, then kills and restarts the operator once per pair: the first duration is the time from the edit or the
/// last start to the kill, the second the time from the kill to the next start.
async fn run_guide_with_kills<E: Environment>(
    harness: &mut Harness<E>,
    run: KillRun,
    kills: impl IntoIterator<Item = (Duration, Duration)>,
) -> Result<TrafficVerdict> {
    harness.wait_for_baseline().await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, run.interval));
    harness.list_adapter(V2).await?;
    for (moment, away) in kills {
        tokio::time::sleep(moment).await;
        harness.kill_operator();
        tokio::time::sleep(away).await;
        harness.start_operator().await?;
    }
    harness.wait_for(cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await?;
    harness.wait_for_requests(run.requests).await?;
    Ok(harness.stop_clients_and_verify().await?.verdict())
}

fn server_kill_at_each_step_costs_only_requests_in_flight<E: Environment>() {
    let setup = Setup::guide(Duration::from_millis(2500));
    let clients = LoadProfile::mixed(MODEL, Duration::from_millis(20));
    let connections = clients.connections.len();
    run_on::<E>(&setup, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&clients);
        for (index, step) in [(0, None), (1, Some((90, 10))), (2, Some((50, 50)))] {
            if let Some((old, new)) = step {
                harness.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
            }
            restart_server(harness, index).await?;
            if step.is_none() {
                harness.list_adapter(V2).await?;
            }
        }
        harness.wait_for(served_by(MODEL, V2)).await?;
        restart_server(harness, 0).await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        let verdict = harness.stop_clients_and_verify().await?.verdict();
        ensure!(verdict.in_flight <= 4 * connections, "more was lost than four servers were working on: {verdict}");
        Ok(())
    });
}

async fn restart_server<E: Environment>(harness: &mut Harness<E>, index: usize) -> Result<()> {
    harness.kill_server(index);
    tokio::time::sleep(Duration::from_millis(300)).await;
    harness.start_server(index).await?;
    harness.wait_for(all_servers_ready()).await.map(drop)
}
