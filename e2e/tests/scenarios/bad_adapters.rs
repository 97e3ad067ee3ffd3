//! Adapters that fail to load or crash the server. One server tries the adapter first; the others are never asked.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    conditions::{all_servers_ready, rejected, served_by, succeeded, traffic_split},
    harness::{Environment, Harness, Setup},
    scenario::run_on,
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2, V3};
use std::time::{Duration, Instant};

rollora_e2e::in_both_environments!(
    unloadable_adapter_is_tried_once_and_rejected,
    adapter_that_crashes_at_load_stops_one_server,
    adapter_that_crashes_at_first_use_stops_one_server,
);

#[expect(clippy::disallowed_methods, reason = "when the server was alive for certain")]
fn now() -> Instant {
    Instant::now()
}

fn setup(flags: &[&str]) -> Setup {
    Setup::guide(Duration::from_millis(300)).with_flags(flags)
}

async fn list_v2_under_load<E: Environment>(harness: &mut Harness<E>) -> Result<()> {
    harness.wait_for_baseline().await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
    harness.list_adapter(V2).await
}

/// Returns how many servers were asked to load v2, and how many completions with it they counted.
async fn count_v2_requests<E: Environment>(harness: &Harness<E>) -> Result<(usize, u64)> {
    let (mut loaded, mut used) = (0, 0);
    for server in harness.environment.servers().iter().filter(|server| server.is_running()) {
        let counters = server.counters().await?;
        loaded += usize::from(counters.loads.contains_key(V2));
        used += counters.models.get(V2).map_or(0, |model| model.completions);
    }
    Ok((loaded, used))
}

/// Fails unless one line of `rollora status` contains all words.
async fn check_status_line<E: Environment>(harness: &Harness<E>, words: &[&str]) -> Result<()> {
    let output = harness.cli_stdout(&["status"]).await?;
    let found = output.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found, "no line of the status has the words {words:?}:\n{output}");
    Ok(())
}

fn unloadable_adapter_is_tried_once_and_rejected<E: Environment>() {
    for (error, word) in [("not-found", "found no adapter"), ("rank", "has rank 32")] {
        run_on::<E>(&setup(&["--fail-load", &format!("{V2}={error}")]), async |harness| {
            list_v2_under_load(harness).await?;
            harness.wait_for(rejected(V2)).await?;
            check_status_line(harness, &[V2, word]).await?;
            harness.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
            ensure!(
                count_v2_requests(harness).await? == (1, 0),
                "asked and used: {:?}",
                count_v2_requests(harness).await?
            );

            // A good version is rolled out afterwards as usual.
            harness.list_adapter(V3).await?;
            harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V3, 10)])).await?;
            harness.wait_for(succeeded(V3)).await?;
            let record = harness.stop_clients_and_verify().await?;
            let verdict = record.verdict();
            ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
            Ok(())
        });
    }
}

fn adapter_that_crashes_at_load_stops_one_server<E: Environment>() {
    check_deadly_adapter::<E>("--deadly-load");
}

fn adapter_that_crashes_at_first_use_stops_one_server<E: Environment>() {
    check_deadly_adapter::<E>("--deadly-use");
}

fn check_deadly_adapter<E: Environment>(flag: &str) {
    run_on::<E>(&setup(&[flag, &format!("{V2}=cut")]), async |harness| {
        let before = now();
        list_v2_under_load(harness).await?;
        harness.wait_for(rejected(V2)).await?;
        harness.record_pilot_crash(before);
        check_status_line(harness, &[V2, "died"]).await?;
        let dead: Vec<_> = (0..3).filter(|index| !harness.environment.servers()[*index].is_running()).collect();
        ensure!(dead.len() == 1, "{} servers died", dead.len());
        ensure!(
            count_v2_requests(harness).await? == (0, 0),
            "the other servers were asked: {:?}",
            count_v2_requests(harness).await?
        );

        // The supervisor starts the server again: it gets v1, and no server tries v2 again.
        harness.start_server(*dead.first().context("no server died")?).await?;
        harness.wait_for(all_servers_ready()).await?;
        harness.assert_holds_for(Duration::from_secs(2), served_by(MODEL, V1).and(all_servers_ready())).await?;
        ensure!(
            harness.environment.servers().iter().all(rollora_testbed::server::VllmServer::is_running),
            "a second server died"
        );
        ensure!(
            count_v2_requests(harness).await? == (0, 0),
            "it was tried again: {:?}",
            count_v2_requests(harness).await?
        );
        let record = harness.stop_clients_and_verify().await?;
        let verdict = record.verdict();
        ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
        Ok(())
    });
}
