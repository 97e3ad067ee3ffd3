//! Weights that are finer than percent.

use crate::numbers::ids;
use anyhow::ensure;
use rollora_e2e::{
    bed::{Place, Setup},
    files::{RolloutFile, Step},
    scenario::on,
    seen::{cleaned_up, served_by, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::on_both_beds!(weights_are_out_of_a_thousand_where_the_rollout_says_so);

fn weights_are_out_of_a_thousand_where_the_rollout_says_so<P: Place>() {
    use Step::{Pause, Weight};
    let pause = Pause(Duration::from_millis(300));
    let steps = vec![Weight(1), pause, Weight(500), pause, Weight(1000)];
    let guide = Setup::guide(Duration::ZERO);
    let setup = Setup { rollout: RolloutFile { steps, total_weight: 1000, ..guide.rollout.clone() }, ..guide };
    on::<P>(&setup, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(V2).await?;
        bed.sees(served_by(MODEL, V2).and(cleaned_up(V1)).and(succeeded(V2))).await?;
        let record = bed.clients_saw_nothing_wrong().await?;
        // A single target has everything, whatever its weight: it is always written in the same way.
        let (first, half): ([_; 2], [_; 2]) = ([(V1, 999), (V2, 1)], [(V1, 500), (V2, 500)]);
        let expected = [vec![(V1, 100)], first.to_vec(), half.to_vec(), vec![(V2, 100)]];
        let expected: Vec<_> = expected.into_iter().map(|split| split.into_iter().collect()).collect();
        ensure!(ids(&record.splits()) == expected, "the weights in force were {:?}", record.splits());
        Ok(())
    });
}
