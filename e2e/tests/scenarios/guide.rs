//! The guide, from its first line to its last.

use crate::numbers::{Sum, ids, say_times};
use anyhow::{Result, ensure};
use rollora_api::rollout::status::Phase;
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    judge::Record,
    scenario::{long, on},
    seen::{cleaned_up, phase, served_by, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::on_both_beds!(the_guide_happens_by_itself_after_one_edit, an_open_pause_ends_when_somebody_promotes);

fn the_guide_happens_by_itself_after_one_edit<P: Place>() {
    let (rounds, pause, pace, requests) = if long() { (20, 2500, 8, 2000) } else { (1, 1000, 20, 200) };
    let (mut sum, mut times) = (Sum::default(), Vec::new());
    for _ in 0..rounds {
        on::<P>(&Setup::guide(Duration::from_millis(pause)), async |bed| {
            let record = the_guide(bed, Duration::from_millis(pace), requests).await?;
            times.extend(record.propagation(&bed.place.rewrite_writes()?));
            sum.add(record.verdict());
            Ok(())
        });
    }
    sum.say("the guide");
    say_times("from a write of the rewrite until every router says so", times);
}

async fn the_guide<P: Place>(bed: &mut Bed<P>, pace: Duration, requests: usize) -> Result<Record> {
    bed.sees_baseline().await?;
    let count = bed.count().await?;
    ensure!(count.of(V1) == 20, "the baseline is not v1 alone: {count}");
    bed.clients_start(&Crowd::mixed(MODEL, pace));

    bed.list(V2).await?;
    for (old, new) in [(90, 10), (50, 50)] {
        bed.sees(split(MODEL, &[(V1, old), (V2, new)])).await?;
        let count = bed.count().await?;
        ensure!(count.of(V1) + count.of(V2) == 20, "somebody else answered at {old}/{new}: {count}");
    }
    bed.sees(served_by(MODEL, V2)).await?;
    let count = bed.count().await?;
    ensure!(count.of(V2) == 20, "not v2 alone after the last step: {count}");

    bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
    bed.clients_sent(requests).await?;
    let record = bed.clients_saw_nothing_wrong().await?;
    the_rules_were_those_of_the_guide(&record)?;
    Ok(record)
}

fn the_rules_were_those_of_the_guide(record: &Record) -> Result<()> {
    let splits = record.splits();
    let expected: [&[_]; 4] = [&[(V1, 100)], &[(V1, 90), (V2, 10)], &[(V1, 50), (V2, 50)], &[(V2, 100)]];
    let expected: Vec<_> = expected.into_iter().map(|split| split.iter().copied().collect()).collect();
    ensure!(ids(&splits) == expected, "the rules in force were {splits:?}");
    for share in record.shares() {
        ensure!(share.fits(), "the versions did not answer as often as their weights say: {share}");
    }
    Ok(())
}

fn an_open_pause_ends_when_somebody_promotes<P: Place>() {
    on::<P>(&Setup::open_at_half(Duration::from_millis(200)), async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(40)));
        bed.list(V2).await?;
        bed.sees(split(MODEL, &[(V1, 50), (V2, 50)]).and(phase(Phase::Paused))).await?;
        // Longer than every timed pause: it waits for a person.
        bed.keeps_seeing(Duration::from_millis(1500), split(MODEL, &[(V1, 50), (V2, 50)])).await?;
        let said = bed.says(&["status"]).await?;
        ensure!(said.contains("promote"), "the status does not say what it waits for:\n{said}");

        bed.says(&["promote"]).await?;
        bed.sees(served_by(MODEL, V2)).await?;
        bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}
