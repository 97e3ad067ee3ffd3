//! People change their minds at 50/50.

use crate::run_stats::{print_line, splits_by_id};
use anyhow::{Context as _, Result, ensure};
use rollora_api::rollout::status::Phase;
use rollora_e2e::{
    conditions::{cleaned_up, has_phase, served_by, succeeded, traffic_split, unloaded_everywhere},
    harness::{Environment, Harness, Setup},
    scenario::{long_tests_enabled, run_on},
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2, V3};
use std::time::{Duration, Instant};

/// Clients send, v2 is listed, and it waits at 50/50 for a person.
async fn start_paused_at_half<P: Environment>(bed: &mut Harness<P>) -> Result<()> {
    bed.wait_for_baseline().await?;
    bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
    bed.list_adapter(V2).await?;
    bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await.map(drop)
}

rollora_e2e::on_both_beds!(
    an_abort_gives_all_new_requests_back_to_the_old_version_at_once,
    a_newer_version_listed_at_half_starts_over_from_the_stable_one,
    a_candidate_unlisted_at_half_loses_its_traffic_before_it_is_unloaded,
    a_candidate_taken_out_of_the_file_at_half_goes_back_to_the_stable_one,
);

fn setup() -> Setup {
    Setup::pause_at_half(Duration::from_millis(300))
}

fn an_abort_gives_all_new_requests_back_to_the_old_version_at_once<P: Environment>() {
    let rounds = if long_tests_enabled() { 20 } else { 1 };
    for _ in 0..rounds {
        run_on::<P>(&setup(), async |bed| {
            start_paused_at_half(bed).await?;
            let file = bed.environment.adapters_yaml().await?;

            let asked = now();
            let said = bed.cli_stdout(&["abort"]).await?;
            bed.wait_for(served_by(MODEL, V1)).await?;
            bed.wait_for(has_phase(Phase::RolledBack)).await?;
            let status = bed.cli_stdout(&["status"]).await?;
            ensure!(status.contains(V2), "the status does not say what was taken back:\n{said}\n{status}");

            bed.wait_for(unloaded_everywhere(V2)).await?;
            bed.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1).and(unloaded_everywhere(V2))).await?;
            ensure!(bed.environment.adapters_yaml().await? == file, "an abort edits nobody's file");
            let record = bed.stop_clients_and_verify().await?;
            let last = record.last_use(V2).context("v2 never answered at 50/50")?;
            check_abort_latency(last.saturating_duration_since(asked))
        });
    }
}

/// So long after the command was typed no rule gives v2 weight any more, and no request that begins gets it.
fn check_abort_latency(took: Duration) -> Result<()> {
    print_line(&format!("abort at 50/50: all new requests went to the old version {took:.1?} after the command"));
    let bound = Duration::from_millis(if long_tests_enabled() { 250 } else { 2000 });
    ensure!(took <= bound, "an abort took {took:?}, and may take {bound:?}");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measurement begins where a person types")]
fn now() -> Instant {
    Instant::now()
}

fn a_newer_version_listed_at_half_starts_over_from_the_stable_one<P: Environment>() {
    run_on::<P>(&setup(), async |bed| {
        start_paused_at_half(bed).await?;
        bed.list_adapter(V3).await?;
        bed.wait_for(traffic_split(MODEL, &[(V1, 90), (V3, 10)])).await?;
        bed.wait_for(traffic_split(MODEL, &[(V1, 50), (V3, 50)]).and(has_phase(Phase::Paused))).await?;
        bed.cli_stdout(&["promote"]).await?;
        bed.wait_for(succeeded(V3)).await?;
        bed.wait_for(cleaned_up(V1).and(cleaned_up(V2))).await?;
        let record = bed.stop_clients_and_verify().await?;

        let seen = splits_by_id(&record.splits());
        let never_both = seen.iter().all(|split| !(split.contains_key(V2) && split.contains_key(V3)));
        ensure!(never_both, "two candidates had weight at a time: {seen:?}");
        let between = seen.iter().skip_while(|split| !split.contains_key(V2)).find(|split| !split.contains_key(V2));
        ensure!(between.is_some_and(|split| split.len() == 1 && split.contains_key(V1)), "not over v1: {seen:?}");
        Ok(())
    });
}

fn a_candidate_unlisted_at_half_loses_its_traffic_before_it_is_unloaded<P: Environment>() {
    run_on::<P>(&setup(), async |bed| {
        start_paused_at_half(bed).await?;
        bed.unlist_adapter(V2).await?;
        bed.wait_for(served_by(MODEL, V1)).await?;
        bed.wait_for(unloaded_everywhere(V2).and(succeeded(V1))).await?;
        bed.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
        // Had a server unloaded it while it had weight, some request would have been answered with 404.
        bed.stop_clients_and_verify().await.map(drop)
    });
}

fn a_candidate_taken_out_of_the_file_at_half_goes_back_to_the_stable_one<P: Environment>() {
    run_on::<P>(&setup(), async |bed| {
        start_paused_at_half(bed).await?;
        bed.remove_adapter(V2).await?;
        bed.wait_for(served_by(MODEL, V1).and(succeeded(V1))).await?;
        bed.stop_clients_and_verify().await.map(drop)
    });
}
