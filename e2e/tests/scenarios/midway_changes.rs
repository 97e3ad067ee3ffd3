//! Changes in the middle of a rollout, at 50/50.

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

/// Starts clients and the rollout of v2, and waits until it pauses at 50/50 for a person.
async fn start_paused_at_half<E: Environment>(harness: &mut Harness<E>) -> Result<()> {
    harness.wait_for_baseline().await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
    harness.list_adapter(V2).await?;
    harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await.map(drop)
}

rollora_e2e::in_both_environments!(
    abort_returns_all_new_requests_to_stable,
    newer_version_at_half_restarts_from_stable,
    candidate_unlisted_at_half_loses_traffic_before_unload,
    candidate_removed_at_half_returns_to_stable,
);

fn setup() -> Setup {
    Setup::pause_at_half(Duration::from_millis(300))
}

fn abort_returns_all_new_requests_to_stable<E: Environment>() {
    let rounds = if long_tests_enabled() { 20 } else { 1 };
    for _ in 0..rounds {
        run_on::<E>(&setup(), async |harness| {
            start_paused_at_half(harness).await?;
            let file = harness.environment.adapters_yaml().await?;

            let command_time = now();
            let output = harness.cli_stdout(&["abort"]).await?;
            harness.wait_for(served_by(MODEL, V1)).await?;
            harness.wait_for(has_phase(Phase::RolledBack)).await?;
            let status = harness.cli_stdout(&["status"]).await?;
            ensure!(status.contains(V2), "the status does not name the aborted version:\n{output}\n{status}");

            harness.wait_for(unloaded_everywhere(V2)).await?;
            harness.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1).and(unloaded_everywhere(V2))).await?;
            ensure!(harness.environment.adapters_yaml().await? == file, "the abort changed the adapters file");
            let record = harness.stop_clients_and_verify().await?;
            let last = record.last_use(V2).context("v2 never answered at 50/50")?;
            check_abort_latency(last.saturating_duration_since(command_time))
        });
    }
}

/// Checks the time from the command until no rule gives v2 weight and no new request gets it.
fn check_abort_latency(latency: Duration) -> Result<()> {
    print_line(&format!("abort at 50/50: all new requests went to the old version {latency:.1?} after the command"));
    let bound = Duration::from_millis(if long_tests_enabled() { 250 } else { 2000 });
    ensure!(latency <= bound, "an abort took {latency:?}, and may take {bound:?}");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measurement begins where a person types")]
fn now() -> Instant {
    Instant::now()
}

fn newer_version_at_half_restarts_from_stable<E: Environment>() {
    run_on::<E>(&setup(), async |harness| {
        start_paused_at_half(harness).await?;
        harness.list_adapter(V3).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 90), (V3, 10)])).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V3, 50)]).and(has_phase(Phase::Paused))).await?;
        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(succeeded(V3)).await?;
        harness.wait_for(cleaned_up(V1).and(cleaned_up(V2))).await?;
        let record = harness.stop_clients_and_verify().await?;

        let splits = splits_by_id(&record.splits());
        let never_both = splits.iter().all(|split| !(split.contains_key(V2) && split.contains_key(V3)));
        ensure!(never_both, "two candidates had weight in one rule: {splits:?}");
        let between = splits.iter().skip_while(|split| !split.contains_key(V2)).find(|split| !split.contains_key(V2));
        ensure!(
            between.is_some_and(|split| split.len() == 1 && split.contains_key(V1)),
            "not through v1 alone: {splits:?}"
        );
        Ok(())
    });
}

fn candidate_unlisted_at_half_loses_traffic_before_unload<E: Environment>() {
    run_on::<E>(&setup(), async |harness| {
        start_paused_at_half(harness).await?;
        harness.unlist_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V1)).await?;
        harness.wait_for(unloaded_everywhere(V2).and(succeeded(V1))).await?;
        harness.assert_holds_for(Duration::from_secs(1), served_by(MODEL, V1)).await?;
        // Requests to a server that unloaded v2 while it had weight would have failed with 404.
        harness.stop_clients_and_verify().await.map(drop)
    });
}

fn candidate_removed_at_half_returns_to_stable<E: Environment>() {
    run_on::<E>(&setup(), async |harness| {
        start_paused_at_half(harness).await?;
        harness.remove_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V1).and(succeeded(V1))).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}
