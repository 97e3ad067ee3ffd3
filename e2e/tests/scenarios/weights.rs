//! Weights with a finer resolution than percent.

use crate::run_stats::splits_by_id;
use anyhow::ensure;
use rollora_e2e::{
    conditions::{cleaned_up, served_by, succeeded},
    files::{RolloutManifest, RolloutStep},
    harness::{Environment, Setup},
    scenario::run_on,
    traffic::LoadProfile,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::in_both_environments!(weights_can_be_out_of_a_thousand);

fn weights_can_be_out_of_a_thousand<E: Environment>() {
    use RolloutStep::{Pause, Weight};
    let pause = Pause(Duration::from_millis(300));
    let steps = vec![Weight(1), pause, Weight(500), pause, Weight(1000)];
    let guide = Setup::guide(Duration::ZERO);
    let setup = Setup { rollout: RolloutManifest { steps, total_weight: 1000, ..guide.rollout.clone() }, ..guide };
    run_on::<E>(&setup, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        let record = harness.stop_clients_and_verify().await?;
        // A single target has all requests at any weight, so Rollora always writes 100.
        let (first, half): ([_; 2], [_; 2]) = ([(V1, 999), (V2, 1)], [(V1, 500), (V2, 500)]);
        let expected = [vec![(V1, 100)], first.to_vec(), half.to_vec(), vec![(V2, 100)]];
        let expected: Vec<_> = expected.into_iter().map(|split| split.into_iter().collect()).collect();
        ensure!(splits_by_id(&record.splits()) == expected, "the active weights were {:?}", record.splits());
        Ok(())
    });
}
