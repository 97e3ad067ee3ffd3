//! The operator's loop `run`: reacts to changes, lets an abort interrupt a reconcile, and ends when it is canceled.

use crate::{
    driver::new_operator,
    guide::{V1, V2, at_half, installed},
    ports::Sim,
};
use rollora_api::rollout::IntentKind;
use rollora_operator::{
    ports::RolloutKey,
    stats::{ReconcileCounts, ReconcileStats},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Runs the operator concurrently with a script, in virtual time; the operator must end after the script.
fn run_with_operator<S: Future<Output = ()>>(sim: &Sim, script: S) -> Arc<ReconcileStats> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (operator, cancel) = (new_operator(sim), CancellationToken::new());
    runtime.block_on(async {
        let running = operator.run(cancel.clone());
        let script = async {
            script.await;
            cancel.cancel();
        };
        let (result, ()) = timeout(Duration::from_mins(2), async { tokio::join!(running, script) }).await.unwrap();
        assert_eq!(result, Ok(()));
    });
    Arc::clone(operator.stats())
}

/// Returns how long it takes until the rewrite has these weights.
async fn wait_for_weights(sim: &Sim, weights: &[(&str, i32)]) -> Duration {
    let start = Instant::now();
    let expected: Vec<(String, i32)> = weights.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    while sim.world().weights() != expected {
        sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

#[test]
fn abort_is_written_within_250_ms_while_the_fleet_hangs() {
    let sim = at_half().sim;
    sim.world().fleet_hangs = true;
    sim.world().changed = true;
    run_with_operator(&sim, async {
        // By now a reconcile waits for a server or router that does not respond.
        sleep(Duration::from_secs(1)).await;
        sim.world().set_intent(IntentKind::Abort);
        let elapsed = wait_for_weights(&sim, &[(V1, 100)]).await;
        assert!(elapsed <= Duration::from_millis(250), "{elapsed:?}");
    });
}

#[test]
fn change_is_reconciled_within_250_ms() {
    let sim = at_half().sim;
    run_with_operator(&sim, async {
        sim.world().set_intent(IntentKind::PromoteFull);
        let elapsed = wait_for_weights(&sim, &[(V2, 100)]).await;
        assert!(elapsed <= Duration::from_millis(250), "{elapsed:?}");
    });
}

#[test]
fn canceled_operator_ends() {
    let sim = installed().sim;
    run_with_operator(&sim, async {});
}

#[test]
fn stats_count_intents_and_writes_of_existing_rollouts() {
    let sim = at_half().sim;
    let key = RolloutKey { namespace: None, name: sim.world().rollout.metadata.name.clone() };
    let stats = run_with_operator(&sim, async {
        sim.world().set_intent(IntentKind::Abort);
        wait_for_weights(&sim, &[(V1, 100)]).await;
        // Lets the last reconcile end.
        sleep(Duration::from_secs(1)).await;
    });
    assert!(stats.for_rollout(&key).finished > 0, "{stats:?}");
    assert_eq!((stats.for_rollout(&key).failed, stats.failures()), (0, 0));
    assert_eq!(
        stats.intent_durations().iter().map(|(verb, durations)| (*verb, durations.count())).collect::<Vec<_>>(),
        [("abort", 1)]
    );
    let writes = stats.write_durations();
    assert_eq!(writes["rewrite"].count(), 1);
    assert!(writes["status"].count() > 0);

    sim.world().changed = true;
    let stats = run_with_operator(&sim, async {
        sleep(Duration::from_secs(1)).await;
        sim.world().delete_rollout();
        while !sim.world().deleted {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_secs(1)).await;
    });
    assert!(stats.reconciles() > 1);
    assert_eq!(stats.for_rollout(&key), ReconcileCounts::default());
}
