//! People change their minds at 50/50.

use crate::numbers::{ids, say};
use anyhow::{Context as _, Result, ensure};
use rollora_api::rollout::status::Phase;
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    scenario::{long, on},
    seen::{cleaned_up, gone_everywhere, phase, served_by, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2, V3};
use std::time::{Duration, Instant};

/// Clients send, v2 is listed, and it waits at 50/50 for a person.
async fn at_half<P: Place>(bed: &mut Bed<P>) -> Result<()> {
    bed.sees_baseline().await?;
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
    bed.list(V2).await?;
    bed.sees(split(MODEL, &[(V1, 50), (V2, 50)]).and(phase(Phase::Paused))).await.map(drop)
}

rollora_e2e::on_both_beds!(
    an_abort_gives_all_new_requests_back_to_the_old_version_at_once,
    a_newer_version_listed_at_half_starts_over_from_the_stable_one,
    a_candidate_unlisted_at_half_loses_its_traffic_before_it_is_unloaded,
    a_candidate_taken_out_of_the_file_at_half_goes_back_to_the_stable_one,
);

fn setup() -> Setup {
    Setup::open_at_half(Duration::from_millis(300))
}

fn an_abort_gives_all_new_requests_back_to_the_old_version_at_once<P: Place>() {
    let rounds = if long() { 20 } else { 1 };
    for _ in 0..rounds {
        on::<P>(&setup(), async |bed| {
            at_half(bed).await?;
            let file = bed.place.adapters_file().await?;

            let asked = now();
            let said = bed.says(&["abort"]).await?;
            bed.sees(served_by(MODEL, V1)).await?;
            bed.sees(phase(Phase::RolledBack)).await?;
            let status = bed.says(&["status"]).await?;
            ensure!(status.contains(V2), "the status does not say what was taken back:\n{said}\n{status}");

            bed.sees(gone_everywhere(V2)).await?;
            bed.keeps_seeing(Duration::from_secs(1), served_by(MODEL, V1).and(gone_everywhere(V2))).await?;
            ensure!(bed.place.adapters_file().await? == file, "an abort edits nobody's file");
            let record = bed.clients_saw_nothing_wrong().await?;
            let last = record.last_of(V2).context("v2 never answered at 50/50")?;
            within_the_bound(last.saturating_duration_since(asked))
        });
    }
}

/// So long after the command was typed no rule gives v2 weight any more, and no request that begins gets it.
fn within_the_bound(took: Duration) -> Result<()> {
    say(&format!("abort at 50/50: all new requests went to the old version {took:.1?} after the command"));
    let bound = Duration::from_millis(if long() { 250 } else { 2000 });
    ensure!(took <= bound, "an abort took {took:?}, and may take {bound:?}");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measurement begins where a person types")]
fn now() -> Instant {
    Instant::now()
}

fn a_newer_version_listed_at_half_starts_over_from_the_stable_one<P: Place>() {
    on::<P>(&setup(), async |bed| {
        at_half(bed).await?;
        bed.list(V3).await?;
        bed.sees(split(MODEL, &[(V1, 90), (V3, 10)])).await?;
        bed.sees(split(MODEL, &[(V1, 50), (V3, 50)]).and(phase(Phase::Paused))).await?;
        bed.says(&["promote"]).await?;
        bed.sees(succeeded(V3)).await?;
        bed.sees(cleaned_up(V1).and(cleaned_up(V2))).await?;
        let record = bed.clients_saw_nothing_wrong().await?;

        let seen = ids(&record.splits());
        let never_both = seen.iter().all(|split| !(split.contains_key(V2) && split.contains_key(V3)));
        ensure!(never_both, "two candidates had weight at a time: {seen:?}");
        let between = seen.iter().skip_while(|split| !split.contains_key(V2)).find(|split| !split.contains_key(V2));
        ensure!(between.is_some_and(|split| split.len() == 1 && split.contains_key(V1)), "not over v1: {seen:?}");
        Ok(())
    });
}

fn a_candidate_unlisted_at_half_loses_its_traffic_before_it_is_unloaded<P: Place>() {
    on::<P>(&setup(), async |bed| {
        at_half(bed).await?;
        bed.unlist(V2).await?;
        bed.sees(served_by(MODEL, V1)).await?;
        bed.sees(gone_everywhere(V2).and(succeeded(V1))).await?;
        bed.keeps_seeing(Duration::from_secs(1), served_by(MODEL, V1)).await?;
        // Had a server unloaded it while it had weight, some request would have been answered with 404.
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}

fn a_candidate_taken_out_of_the_file_at_half_goes_back_to_the_stable_one<P: Place>() {
    on::<P>(&setup(), async |bed| {
        at_half(bed).await?;
        bed.remove(V2).await?;
        bed.sees(served_by(MODEL, V1).and(succeeded(V1))).await?;
        bed.clients_saw_nothing_wrong().await.map(drop)
    });
}
