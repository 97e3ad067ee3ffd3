//! Everything at once, for a long time: rules change every 100 ms at a real API server, clients of both versions of
//! HTTP send and give up, and replicas of the program are killed and started again behind an Envoy with the
//! configuration that is shipped.
//!
//! Two things must not happen. No request may reach a model that no rule in force gave it: neither one of another
//! client, nor one that the rules do not give any more. And no request may be lost, apart from those that a killed
//! replica held before the response headers: whoever came later has to be served by another one, and an answer that
//! streams goes on.

mod bed;
mod crowd;
mod ledger;
mod models;

use crate::stage::has_envoy;
use bed::Bed;
use crowd::Crowd;
use ledger::{Ledger, Loss};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::scenario::long;
use rollora_testbed::tools::{CONTROL_PLANE, all_available};
use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the clients do and who is killed when.
const SEED: u64 = 6;

/// How long it goes on, and how often somebody is killed.
#[derive(Debug, Clone, Copy)]
struct Length {
    requests: u64,
    between_kills: u64,
}

const SHORT: Length = Length { requests: 4_000, between_kills: 900 };
const LONG: Length = Length { requests: 1_000_000, between_kills: 8_000 };

/// However slowly replicas start.
const FEWEST_KILLS: usize = 3;

#[expect(clippy::disallowed_methods, reason = "a test bed is a shell: what it records carries the time")]
fn now() -> Instant {
    Instant::now()
}

fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_change_clients_give_up_and_replicas_are_killed_and_every_answer_is_right() {
    const WHAT: &str = "rules change, clients give up and replicas are killed";
    if !has_envoy(WHAT) || !all_available(&[CONTROL_PLANE], WHAT) {
        return;
    }
    let length = if long() { LONG } else { SHORT };
    let ledger = Arc::new(Ledger::new(now()));
    let mut bed = Bed::start(&ledger).await.unwrap();
    let started = now();
    let crowd = Crowd::start(bed.gateway(), &ledger, SEED);
    let mut random = StdRng::seed_from_u64(SEED);
    let mut next_kill = length.between_kills;
    while ledger.sent() < length.requests || bed.kills() < FEWEST_KILLS {
        bed.still_runs();
        if ledger.sent() >= next_kill {
            // Now and then all but one.
            let victims = if random.random_ratio(1, 5) { 2 } else { 1 };
            let away = Duration::from_millis(random.random_range(0..300));
            bed.kill(random.random_range(0..bed::REPLICAS), victims, away).await.unwrap();
            next_kill = ledger.sent() + length.between_kills;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    crowd.end().await;
    let took = started.elapsed();
    let (rules, outages) = bed.end().await;
    let verdict = ledger.verdict(&rules, &outages);
    say(&format!("soak, seed {SEED}: {verdict}; in {took:.0?}"));
    assert!(verdict.wrong.is_empty(), "{:#?}", verdict.wrong.iter().take(20).collect::<Vec<_>>());
    let unexplained: Vec<&Loss> = verdict.lost.iter().filter(|loss| !loss.held_by_a_killed_replica).collect();
    let some: Vec<_> = unexplained.iter().take(20).map(|loss| format!("\n{loss:?}")).collect();
    assert!(unexplained.is_empty(), "{} {}", unexplained.len(), some.concat());
    // It did happen.
    assert!(verdict.sent >= length.requests && verdict.answered > length.requests / 2, "{verdict}");
    assert!(
        verdict.given_up > 0 && verdict.streamed > 0 && verdict.by_rule > 0 && verdict.without_rule > 0,
        "{verdict}"
    );
    assert!(verdict.kills >= FEWEST_KILLS && verdict.rules >= 5, "{verdict}");
}
