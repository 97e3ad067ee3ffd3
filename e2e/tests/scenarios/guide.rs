//! The whole guide, from the baseline to the cleanup.

use crate::run_stats::{VerdictSum, print_times, splits_by_id};
use anyhow::{Result, ensure};
use rollora_api::rollout::status::Phase;
use rollora_e2e::{
    conditions::{cleaned_up, has_phase, served_by, succeeded, traffic_split},
    harness::{Environment, Harness, Setup},
    oracle::TrafficRecord,
    scenario::{long_tests_enabled, run_on},
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::in_both_environments!(guide_completes_after_one_edit, indefinite_pause_ends_with_promote);

fn guide_completes_after_one_edit<E: Environment>() {
    let (rounds, pause, interval, requests) =
        if long_tests_enabled() { (20, 2500, 8, 2000) } else { (1, 1000, 20, 200) };
    let (mut sum, mut times) = (VerdictSum::default(), Vec::new());
    for _ in 0..rounds {
        run_on::<E>(&Setup::guide(Duration::from_millis(pause)), async |harness| {
            let record = run_guide(harness, Duration::from_millis(interval), requests).await?;
            times.extend(record.propagation_delays(&harness.environment.rewrite_write_times()?));
            sum.add(record.verdict());
            Ok(())
        });
    }
    sum.print("the guide");
    print_times("from a write of the rewrite until every router reports it", times);
}

async fn run_guide<E: Environment>(
    harness: &mut Harness<E>,
    interval: Duration,
    requests: usize,
) -> Result<TrafficRecord> {
    harness.wait_for_baseline().await?;
    let count = harness.count_split().await?;
    ensure!(count.of(V1) == 20, "the baseline is not v1 alone: {count}");
    harness.start_clients(&LoadProfile::mixed(MODEL, interval));

    harness.list_adapter(V2).await?;
    for (old, new) in [(90, 10), (50, 50)] {
        harness.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)])).await?;
        let count = harness.count_split().await?;
        ensure!(count.of(V1) + count.of(V2) == 20, "an unexpected model answered at {old}/{new}: {count}");
    }
    harness.wait_for(served_by(MODEL, V2)).await?;
    let count = harness.count_split().await?;
    ensure!(count.of(V2) == 20, "not v2 alone after the last step: {count}");

    harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
    harness.wait_for_requests(requests).await?;
    let record = harness.stop_clients_and_verify().await?;
    check_guide_splits(&record)?;
    Ok(record)
}

fn check_guide_splits(record: &TrafficRecord) -> Result<()> {
    let splits = record.splits();
    let expected: [&[_]; 4] = [&[(V1, 100)], &[(V1, 90), (V2, 10)], &[(V1, 50), (V2, 50)], &[(V2, 100)]];
    let expected: Vec<_> = expected.into_iter().map(|split| split.iter().copied().collect()).collect();
    ensure!(splits_by_id(&splits) == expected, "the active rules were {splits:?}");
    for sample in record.split_samples() {
        ensure!(sample.matches_weights(), "the split of requests does not match the weights: {sample}");
    }
    Ok(())
}

fn indefinite_pause_ends_with_promote<E: Environment>() {
    run_on::<E>(&Setup::pause_at_half(Duration::from_millis(200)), async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(40)));
        harness.list_adapter(V2).await?;
        harness.wait_for(traffic_split(MODEL, &[(V1, 50), (V2, 50)]).and(has_phase(Phase::Paused))).await?;
        // Longer than every timed pause: the rollout waits for a person.
        harness.assert_holds_for(Duration::from_millis(1500), traffic_split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        let output = harness.cli_stdout(&["status"]).await?;
        ensure!(output.contains("promote"), "the status does not name `promote`:\n{output}");

        harness.cli_stdout(&["promote"]).await?;
        harness.wait_for(served_by(MODEL, V2)).await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        harness.stop_clients_and_verify().await.map(drop)
    });
}
