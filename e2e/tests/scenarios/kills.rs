//! Processes end without warning, and the rollout ends as if they had not.
//!
//! How failures are counted: a request that a process was working on when it was killed, and a connection that the only
//! gateway refused while it was dead, are counted apart. Every other request without an answer is an error.

use crate::numbers::{Sum, say};
use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    guide::{MODEL, V1, V2},
    judge::Verdict,
    scenario::{long, on_one_machine},
    seen::{cleaned_up, every_server_is_ready, served_by, split, succeeded},
    traffic::Crowd,
};
use std::{sync::Mutex, time::Duration};

/// From the edit of the file to the end of the cleanup, as [`Setup::guide`] with this pause takes.
const PAUSE: Duration = Duration::from_millis(800);
const ROLLOUT: Duration = Duration::from_millis(4500);

#[test]
fn killed_once_at_a_random_moment_it_comes_to_the_same_end() {
    let (seeds, pace, fewest) = if long() { (0..50, 5, 2000) } else { (0..2, 20, 200) };
    let sum = Mutex::new(Sum::default());
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let moment = random.random_range(Duration::ZERO..ROLLOUT);
        let away = random.random_range(Duration::ZERO..Duration::from_millis(300));
        on_one_machine(&Setup::guide(PAUSE), async |bed| {
            let verdict = the_guide_with_kills(bed, pace, [(moment, away)]).await?;
            ensure!(verdict.requests >= fewest, "too few requests: {verdict}");
            if long() {
                say(&format!("kill, seed {seed}: {moment:.1?} after the edit, away for {away:.1?}: {verdict}"));
            }
            sum.lock().unwrap().add(verdict);
            Ok(())
        });
    }
    sum.lock().unwrap().say("the guide with one kill of rollora local");
}

#[test]
fn killed_again_and_again_it_comes_to_the_same_end() {
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    let kills = std::iter::repeat_with(|| {
        let moment = random.random_range(Duration::ZERO..Duration::from_millis(1200));
        (moment, random.random_range(Duration::ZERO..Duration::from_millis(100)))
    });
    let kills: Vec<_> = kills.take(8).collect();
    on_one_machine(&Setup::guide(PAUSE), async |bed| the_guide_with_kills(bed, 20, kills).await.map(drop));
}

/// Lists v2, kills so long after that (or after the last start), starts again so long after the kill.
async fn the_guide_with_kills<P: Place>(
    bed: &mut Bed<P>,
    pace: u64,
    kills: impl IntoIterator<Item = (Duration, Duration)>,
) -> Result<Verdict> {
    bed.sees_baseline().await?;
    bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(pace)));
    bed.list(V2)?;
    for (moment, away) in kills {
        tokio::time::sleep(moment).await;
        bed.kill_operator();
        tokio::time::sleep(away).await;
        bed.start_operator().await?;
    }
    bed.sees(cleaned_up(V1).and(succeeded(V2)).and(served_by(MODEL, V2))).await?;
    Ok(bed.clients_saw_nothing_wrong().await?.verdict())
}

#[test]
fn a_server_killed_and_started_again_at_each_step_costs_only_what_it_was_working_on() {
    let setup = Setup::guide(Duration::from_millis(2500));
    let clients = Crowd::mixed(MODEL, Duration::from_millis(20));
    let connections = clients.connections.len();
    on_one_machine(&setup, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&clients);
        for (index, step) in [(0, None), (1, Some((90, 10))), (2, Some((50, 50)))] {
            if let Some((old, new)) = step {
                bed.sees(split(MODEL, &[(V1, old), (V2, new)])).await?;
            }
            a_server_dies_and_comes_back(bed, index).await?;
            if step.is_none() {
                bed.list(V2)?;
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
