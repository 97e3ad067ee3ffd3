//! Processes end without warning, and the rollout ends as if they had not.
//!
//! How failures are counted: a request that a process was working on when it was killed, and a connection that the only
//! gateway refused while it was dead, are counted apart. Every other request without an answer is an error.

use crate::numbers::{Sum, say};
use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    judge::Verdict,
    scenario::{long, on},
    seen::{cleaned_up, every_server_is_ready, served_by, split, succeeded},
    traffic::Crowd,
};
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

rollora_e2e::on_both_beds!(
    killed_once_at_a_random_moment_it_comes_to_the_same_end,
    killed_again_and_again_it_comes_to_the_same_end,
    a_server_killed_and_started_again_at_each_step_costs_only_what_it_was_working_on,
);

/// What a run is made of. In the long schedule each has at least 2,000 requests.
#[derive(Clone, Copy)]
struct Run {
    pause: Duration,
    /// From the edit of the file to the end of the cleanup, as it takes with this pause.
    takes: Duration,
    pace: Duration,
    requests: usize,
}

impl Run {
    fn wanted() -> Self {
        let millis = Duration::from_millis;
        if long() {
            Self { pause: millis(1500), takes: millis(6500), pace: millis(6), requests: 2000 }
        } else {
            Self { pause: millis(800), takes: millis(4500), pace: millis(20), requests: 200 }
        }
    }
}

fn killed_once_at_a_random_moment_it_comes_to_the_same_end<P: Place>() {
    let (seeds, run) = (if long() { 0..50 } else { 0..2 }, Run::wanted());
    let mut sum = Sum::default();
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let moment = random.random_range(Duration::ZERO..run.takes);
        let away = random.random_range(Duration::ZERO..Duration::from_millis(300));
        on::<P>(&Setup::guide(run.pause), async |bed| {
            let verdict = the_guide_with_kills(bed, run, [(moment, away)]).await?;
            if long() {
                say(&format!("kill, seed {seed}: {moment:.1?} after the edit, away for {away:.1?}: {verdict}"));
            }
            sum.add(verdict);
            Ok(())
        });
    }
    sum.say("the guide with one kill of rollora local");
}

fn killed_again_and_again_it_comes_to_the_same_end<P: Place>() {
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    let kills = std::iter::repeat_with(|| {
        let moment = random.random_range(Duration::ZERO..Duration::from_millis(1200));
        (moment, random.random_range(Duration::ZERO..Duration::from_millis(100)))
    });
    let kills: Vec<_> = kills.take(8).collect();
    let run = Run::wanted();
    on::<P>(&Setup::guide(run.pause), async |bed| the_guide_with_kills(bed, run, kills).await.map(drop));
}

/// Lists v2, kills so long after that (or after the last start), starts again so long after the kill.
async fn the_guide_with_kills<P: Place>(
    bed: &mut Bed<P>,
    run: Run,
    kills: impl IntoIterator<Item = (Duration, Duration)>,
) -> Result<Verdict> {
    bed.sees_baseline().await?;
    bed.clients_start(&Crowd::mixed(MODEL, run.pace));
    bed.list(V2).await?;
    for (moment, away) in kills {
        tokio::time::sleep(moment).await;
        bed.kill_operator();
        tokio::time::sleep(away).await;
        bed.start_operator().await?;
    }
    bed.sees(cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await?;
    bed.clients_sent(run.requests).await?;
    Ok(bed.clients_saw_nothing_wrong().await?.verdict())
}

fn a_server_killed_and_started_again_at_each_step_costs_only_what_it_was_working_on<P: Place>() {
    let setup = Setup::guide(Duration::from_millis(2500));
    let clients = Crowd::mixed(MODEL, Duration::from_millis(20));
    let connections = clients.connections.len();
    on::<P>(&setup, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&clients);
        for (index, step) in [(0, None), (1, Some((90, 10))), (2, Some((50, 50)))] {
            if let Some((old, new)) = step {
                bed.sees(split(MODEL, &[(V1, old), (V2, new)])).await?;
            }
            a_server_dies_and_comes_back(bed, index).await?;
            if step.is_none() {
                bed.list(V2).await?;
            }
        }
        bed.sees(served_by(MODEL, V2)).await?;
        a_server_dies_and_comes_back(bed, 0).await?;
        bed.sees(cleaned_up(V1).and(succeeded(V2))).await?;
        let verdict = bed.clients_saw_nothing_wrong().await?.verdict();
        ensure!(verdict.in_flight <= 4 * connections, "more was lost than four servers were working on: {verdict}");
        Ok(())
    });
}

async fn a_server_dies_and_comes_back<P: Place>(bed: &mut Bed<P>, index: usize) -> Result<()> {
    bed.kill_server(index);
    tokio::time::sleep(Duration::from_millis(300)).await;
    bed.start_server(index).await?;
    bed.sees(every_server_is_ready()).await.map(drop)
}
