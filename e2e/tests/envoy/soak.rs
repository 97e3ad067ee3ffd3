//! Everything at once, for a long time: rules change every 100 ms at a real API server, clients of both versions of
//! HTTP send and give up, and replicas of the program are killed and started again behind an Envoy with the
//! configuration that is shipped.
//!
//! Two things must not happen. No request may reach a model that no rule in force gave it: neither one of another
//! client, nor one that the rules do not give any more. And no request may be lost, apart from those that a killed
//! replica held before the response headers: whoever came later has to be served by another one, and an answer that
//! streams goes on.

mod ledger;
mod load;
mod model_server;
mod testbed;

use crate::fixture::has_envoy;
use ledger::{LostRequest, SoakLedger};
use load::SoakLoad;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::scenario::long_tests_enabled;
use rollora_testbed::tools::{CONTROL_PLANE, all_available};
use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};
use testbed::SoakTestbed;

/// What the clients do and who is killed when.
const SEED: u64 = 6;

/// How long it goes on, and how often somebody is killed.
#[derive(Debug, Clone, Copy)]
struct SoakLength {
    requests: u64,
    requests_between_kills: u64,
}

const SHORT: SoakLength = SoakLength { requests: 4_000, requests_between_kills: 900 };
const LONG: SoakLength = SoakLength { requests: 1_000_000, requests_between_kills: 8_000 };

/// However slowly replicas start.
const MIN_KILLS: usize = 3;

#[expect(clippy::disallowed_methods, reason = "a test bed is a shell: what it records carries the time")]
fn now() -> Instant {
    Instant::now()
}

fn print_line(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_change_clients_give_up_and_replicas_are_killed_and_every_answer_is_right() {
    const WHAT: &str = "rules change, clients give up and replicas are killed";
    if !has_envoy(WHAT) || !all_available(&[CONTROL_PLANE], WHAT) {
        return;
    }
    let length = if long_tests_enabled() { LONG } else { SHORT };
    let ledger = Arc::new(SoakLedger::new(now()));
    let mut bed = SoakTestbed::start(&ledger).await.unwrap();
    let started = now();
    let crowd = SoakLoad::start(bed.gateway(), &ledger, SEED);
    let mut random = StdRng::seed_from_u64(SEED);
    let mut next_kill = length.requests_between_kills;
    while ledger.sent() < length.requests || bed.kill_count() < MIN_KILLS {
        bed.assert_running();
        if ledger.sent() >= next_kill {
            // Now and then all but one.
            let victims = if random.random_ratio(1, 5) { 2 } else { 1 };
            let away = Duration::from_millis(random.random_range(0..300));
            bed.kill_replicas(random.random_range(0..testbed::REPLICAS), victims, away).await.unwrap();
            next_kill = ledger.sent() + length.requests_between_kills;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    crowd.stop().await;
    let took = started.elapsed();
    let (rules, outages) = bed.stop().await;
    let verdict = ledger.report(&rules, &outages);
    print_line(&format!("soak, seed {SEED}: {verdict}; in {took:.0?}"));
    assert!(verdict.violations.is_empty(), "{:#?}", verdict.violations.iter().take(20).collect::<Vec<_>>());
    let unexplained: Vec<&LostRequest> = verdict.lost.iter().filter(|loss| !loss.explained_by_kill).collect();
    let some: Vec<_> = unexplained.iter().take(20).map(|loss| format!("\n{loss:?}")).collect();
    assert!(unexplained.is_empty(), "{} {}", unexplained.len(), some.concat());
    // It did happen.
    assert!(verdict.sent >= length.requests && verdict.answered > length.requests / 2, "{verdict}");
    assert!(
        verdict.canceled > 0 && verdict.streamed > 0 && verdict.with_rule > 0 && verdict.without_rule > 0,
        "{verdict}"
    );
    assert!(verdict.kills >= MIN_KILLS && verdict.generations >= 5, "{verdict}");
}
