//! A long run with everything that happens in production: rules change every 100 ms at a real API server, clients of
//! both HTTP versions send requests and cancel some, and replicas of the program are killed and started again behind an
//! Envoy with the shipped configuration.
//!
//! Two things must not happen. First, a request reaches a model that no active rule gave it: neither a model of another
//! client, nor one of outdated rules. Second, a request is lost, except those that a killed replica held before the
//! response headers: another replica must serve later requests, and a streaming response must continue.

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

/// Determines the clients' requests and the kills.
const SEED: u64 = 6;

/// Number of requests, and number of requests from one kill to the next.
#[derive(Debug, Clone, Copy)]
struct SoakLength {
    requests: u64,
    requests_between_kills: u64,
}

const SHORT: SoakLength = SoakLength { requests: 4_000, requests_between_kills: 900 };
const LONG: SoakLength = SoakLength { requests: 1_000_000, requests_between_kills: 8_000 };

/// The run continues until this many kills, even if replicas start slowly.
const MIN_KILLS: usize = 3;

#[expect(clippy::disallowed_methods, reason = "the soak records real time")]
fn now() -> Instant {
    Instant::now()
}

fn print_line(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_loses_no_request_without_a_kill() {
    const WHAT: &str = "rules change, clients give up and replicas are killed";
    if !has_envoy(WHAT) || !all_available(&[CONTROL_PLANE], WHAT) {
        return;
    }
    let length = if long_tests_enabled() { LONG } else { SHORT };
    let ledger = Arc::new(SoakLedger::new(now()));
    let mut testbed = SoakTestbed::start(&ledger).await.unwrap();
    let started = now();
    let load = SoakLoad::start(testbed.gateway(), &ledger, SEED);
    let mut random = StdRng::seed_from_u64(SEED);
    let mut next_kill = length.requests_between_kills;
    while ledger.sent() < length.requests || testbed.kill_count() < MIN_KILLS {
        testbed.assert_running();
        if ledger.sent() >= next_kill {
            // In one of five kills, all replicas but one.
            let count = if random.random_ratio(1, 5) { 2 } else { 1 };
            let away = Duration::from_millis(random.random_range(0..300));
            testbed.kill_replicas(random.random_range(0..testbed::REPLICAS), count, away).await.unwrap();
            next_kill = ledger.sent() + length.requests_between_kills;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.stop().await;
    let elapsed = started.elapsed();
    let (rules, outages) = testbed.stop().await;
    let report = ledger.report(&rules, &outages);
    print_line(&format!("soak, seed {SEED}: {report}; in {elapsed:.0?}"));
    assert!(report.violations.is_empty(), "{:#?}", report.violations.iter().take(20).collect::<Vec<_>>());
    let unexplained: Vec<&LostRequest> = report.lost.iter().filter(|loss| !loss.explained_by_kill).collect();
    let some: Vec<_> = unexplained.iter().take(20).map(|loss| format!("\n{loss:?}")).collect();
    assert!(unexplained.is_empty(), "{} {}", unexplained.len(), some.concat());
    // Everything that the run is about did happen.
    assert!(report.sent >= length.requests && report.answered > length.requests / 2, "{report}");
    assert!(report.canceled > 0 && report.streamed > 0 && report.with_rule > 0 && report.without_rule > 0, "{report}");
    assert!(report.kills >= MIN_KILLS && report.generations >= 5, "{report}");
}
