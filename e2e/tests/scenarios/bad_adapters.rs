//! Adapters that cannot be loaded, or that end the server. One server is tried first: the others are never asked.

use anyhow::{Context as _, Result, ensure};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    scenario::on,
    seen::{every_server_is_ready, rejected, served_by, split, succeeded},
    traffic::Crowd,
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

async fn v2_is_listed<P: Place>(bed: &mut Bed<P>) -> Result<()> {
    bed.sees_baseline().await?;
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
    bed.list(V2).await
}

/// How many servers were asked to load v2, and how many completions with it clients sent, as the servers counted.
async fn asked<P: Place>(bed: &Bed<P>) -> Result<(usize, u64)> {
    let (mut loaded, mut used) = (0, 0);
    for server in bed.place.servers().iter().filter(|server| server.is_running()) {
        let counters = server.counters().await?;
        loaded += usize::from(counters.loads.contains_key(V2));
        used += counters.models.get(V2).map_or(0, |model| model.completions);
    }
    Ok((loaded, used))
}

/// The reason stands in one line of `rollora status`.
async fn one_line_says<P: Place>(bed: &Bed<P>, words: &[&str]) -> Result<()> {
    let said = bed.says(&["status"]).await?;
    let found = said.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found, "no line of the status has the words {words:?}:\n{said}");
    Ok(())
}

fn an_adapter_that_cannot_be_loaded_is_tried_on_one_server_and_rejected<P: Place>() {
    for (fault, word) in [("not-found", "found no adapter"), ("rank", "has rank 32")] {
        on::<P>(&setup(&["--fail-load", &format!("{V2}={fault}")]), async |bed| {
            v2_is_listed(bed).await?;
            bed.sees(rejected(V2)).await?;
            one_line_says(bed, &[V2, word]).await?;
            bed.keeps_seeing(Duration::from_secs(1), served_by(MODEL, V1)).await?;
            ensure!(asked(bed).await? == (1, 0), "asked and used: {:?}", asked(bed).await?);

            // A good version after it is rolled out as ever.
            bed.list(V3).await?;
            bed.sees(split(MODEL, &[(V1, 90), (V3, 10)])).await?;
            bed.sees(succeeded(V3)).await?;
            let record = bed.clients_saw_nothing_wrong().await?;
            let verdict = record.verdict();
            ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
            Ok(())
        });
    }
}

fn an_adapter_that_ends_the_server_at_load_hurts_one_server_and_no_client<P: Place>() {
    a_deadly_adapter::<P>("--deadly-load");
}

fn an_adapter_that_ends_the_server_at_first_use_hurts_one_server_and_no_client<P: Place>() {
    a_deadly_adapter::<P>("--deadly-use");
}

fn a_deadly_adapter<P: Place>(flag: &str) {
    on::<P>(&setup(&[flag, &format!("{V2}=cut")]), async |bed| {
        let before = now();
        v2_is_listed(bed).await?;
        bed.sees(rejected(V2)).await?;
        bed.pilot_died(before);
        one_line_says(bed, &[V2, "died"]).await?;
        let dead: Vec<_> = (0..3).filter(|index| !bed.place.servers()[*index].is_running()).collect();
        ensure!(dead.len() == 1, "{} servers died", dead.len());
        ensure!(asked(bed).await? == (0, 0), "the other servers were asked: {:?}", asked(bed).await?);

        // Whoever looks after the server starts it again: it gets v1, and nobody tries v2 there or elsewhere.
        bed.start_server(*dead.first().context("no server died")?).await?;
        bed.sees(every_server_is_ready()).await?;
        bed.keeps_seeing(Duration::from_secs(2), served_by(MODEL, V1).and(every_server_is_ready())).await?;
        ensure!(
            bed.place.servers().iter().all(rollora_testbed::server::VllmServer::is_running),
            "a second server died"
        );
        ensure!(asked(bed).await? == (0, 0), "it was tried again: {:?}", asked(bed).await?);
        let record = bed.clients_saw_nothing_wrong().await?;
        let verdict = record.verdict();
        ensure!(!verdict.by_model.contains_key(V2), "a client was answered by the bad adapter: {verdict}");
        Ok(())
    });
}
