//! Adapters that cannot be loaded, or that end the server. One server is tried first: the others are never asked.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    conditions::{all_servers_ready, rejected, served_by, succeeded, traffic_split},
    harness::{Environment, Harness, Setup},
    scenario::run_on,
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2, V3};
use std::time::{Duration, Instant};

rollora_e2e::on_both_beds!(
    an_adapter_that_cannot_be_loaded_is_tried_on_one_server_and_rejected,
    an_adapter_that_ends_the_server_at_load_hurts_one_server_and_no_client,
    an_adapter_that_ends_the_server_at_first_use_hurts_one_server_and_no_client,
);

#[expect(clippy::disallowed_methods, reason = "when the server was alive for certain")]
fn now() -> Instant {
    Instant::now()
}

fn setup(flags: &[&str]) -> Setup {
    Setup::guide(Duration::from_millis(300)).with_flags(flags)
}

async fn list_v2_under_load<P: Environment>(bed: &mut Harness<P>) -> Result<()> {
    bed.wait_for_baseline().await?;
    bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
    bed.list_adapter(V2).await
}

/// How many servers were asked to load v2, and how many completions with it clients sent, as the servers counted.
async fn count_v2_requests<P: Environment>(bed: &Harness<P>) -> Result<(usize, u64)> {
    let (mut loaded, mut used) = (0, 0);
    for server in bed.environment.servers().iter().filter(|server| server.is_running()) {
        let counters = server.counters().await?;
        loaded += usize::from(counters.loads.contains_key(V2));
        used += counters.models.get(V2).map_or(0, |model| model.completions);
    }
    Ok((loaded, used))
}

/// The reason stands in one line of `rollora status`.
async fn check_status_line<P: Environment>(bed: &Harness<P>, words: &[&str]) -> Result<()> {
    let said = bed.cli_stdout(&["status"]).await?;
    let found = said.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found, "no line of the status has the words {words:?}:\n{said}");
    Ok(())
}

fn an_adapter_that_cannot_be_loaded_is_tried_on_one_server_and_rejected<P: Environment>() {
    for (fault, word) in [("not-found", "found no adapter"), ("rank", "has rank 32")] {
        run_on::<P>(&setup(&["--fail-load", &format!("{V2}={fault}")]), async |bed| {
            list_v2_under_load(bed).await?;
            bed.wait_for(rejected(V2)).await?;
            check_status_line(bed, &[V2, word]).await?;
            bed.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
            ensure!(count_v2_requests(bed).await? == (1, 0), "asked and used: {:?}", count_v2_requests(bed).await?);

            // A good version after it is rolled out as ever.
            bed.list_adapter(V3).await?;
            bed.wait_for(traffic_split(MODEL, &[(V1, 90), (V3, 10)])).await?;
            bed.wait_for(succeeded(V3)).await?;
            let record = bed.stop_clients_and_verify().await?;
            let verdict = record.verdict();
            ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
            Ok(())
        });
    }
}

fn an_adapter_that_ends_the_server_at_load_hurts_one_server_and_no_client<P: Environment>() {
    check_deadly_adapter::<P>("--deadly-load");
}

fn an_adapter_that_ends_the_server_at_first_use_hurts_one_server_and_no_client<P: Environment>() {
    check_deadly_adapter::<P>("--deadly-use");
}

fn check_deadly_adapter<P: Environment>(flag: &str) {
    run_on::<P>(&setup(&[flag, &format!("{V2}=cut")]), async |bed| {
        let before = now();
        list_v2_under_load(bed).await?;
        bed.wait_for(rejected(V2)).await?;
        bed.record_pilot_crash(before);
        check_status_line(bed, &[V2, "died"]).await?;
        let dead: Vec<_> = (0..3).filter(|index| !bed.environment.servers()[*index].is_running()).collect();
        ensure!(dead.len() == 1, "{} servers died", dead.len());
        ensure!(
            count_v2_requests(bed).await? == (0, 0),
            "the other servers were asked: {:?}",
            count_v2_requests(bed).await?
        );

        // Whoever looks after the server starts it again: it gets v1, and nobody tries v2 there or elsewhere.
        bed.start_server(*dead.first().context("no server died")?).await?;
        bed.wait_for(all_servers_ready()).await?;
        bed.assert_holds_for(Duration::from_secs(2), served_by(MODEL, V1).and(all_servers_ready())).await?;
        ensure!(
            bed.environment.servers().iter().all(rollora_testbed::server::VllmServer::is_running),
            "a second server died"
        );
        ensure!(count_v2_requests(bed).await? == (0, 0), "it was tried again: {:?}", count_v2_requests(bed).await?);
        let record = bed.stop_clients_and_verify().await?;
        let verdict = record.verdict();
        ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
        Ok(())
    });
}
