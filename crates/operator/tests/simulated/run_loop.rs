//! The operator as it runs: it hears of changes, gives way to an abort, and ends when it is told to.

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

/// Runs the operator beside a script, in virtual time; the operator has to end when the script has.
fn run_with_operator<S: Future<Output = ()>>(sim: &Sim, script: S) -> Arc<ReconcileStats> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (operator, cancel) = (new_operator(sim), CancellationToken::new());
    runtime.block_on(async {
        let running = operator.run(cancel.clone());
        let script = async {
            script.await;
            cancel.cancel();
        };
        let (ended, ()) = timeout(Duration::from_mins(2), async { tokio::join!(running, script) }).await.unwrap();
        assert_eq!(ended, Ok(()));
    });
    Arc::clone(operator.stats())
}

/// How long it takes until the rewrite says this.
async fn wait_for_weights(sim: &Sim, weights: &[(&str, i32)]) -> Duration {
    let began = Instant::now();
    let wanted: Vec<(String, i32)> = weights.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect();
    while sim.world().weights() != wanted {
        sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

#[test]
fn an_abort_is_written_within_250_ms_while_servers_and_routers_hang() {
    let sim = at_half().sim;
    sim.world().fleet_hangs = true;
    sim.world().changed = true;
    run_with_operator(&sim, async {
        // By now a reconcile is in the middle of asking somebody who does not answer.
        sleep(Duration::from_secs(1)).await;
        sim.world().set_intent(IntentKind::Abort);
        let took = wait_for_weights(&sim, &[(V1, 100)]).await;
        assert!(took <= Duration::from_millis(250), "{took:?}");
    });
}

#[test]
fn a_change_is_heard_at_once() {
    let sim = at_half().sim;
    run_with_operator(&sim, async {
        sim.world().set_intent(IntentKind::PromoteFull);
        let took = wait_for_weights(&sim, &[(V2, 100)]).await;
        assert!(took <= Duration::from_millis(250), "{took:?}");
    });
}

#[test]
fn an_operator_that_is_told_to_end_ends() {
    let sim = installed().sim;
    run_with_operator(&sim, async {});
}

#[test]
fn what_was_asked_and_written_is_counted_with_its_time_and_a_rollout_that_is_gone_is_not() {
    let sim = at_half().sim;
    let key = RolloutKey { namespace: None, name: sim.world().rollout.metadata.name.clone() };
    let tally = run_with_operator(&sim, async {
        sim.world().set_intent(IntentKind::Abort);
        wait_for_weights(&sim, &[(V1, 100)]).await;
        // Its last reconcile ends.
        sleep(Duration::from_secs(1)).await;
    });
    assert!(tally.for_rollout(&key).finished > 0, "{tally:?}");
    assert_eq!((tally.for_rollout(&key).failed, tally.failures()), (0, 0));
    assert_eq!(
        tally.intent_durations().iter().map(|(verb, it)| (*verb, it.count())).collect::<Vec<_>>(),
        [("abort", 1)]
    );
    let writes = tally.write_durations();
    assert_eq!(writes["rewrite"].count(), 1);
    assert!(writes["status"].count() > 0);

    sim.world().changed = true;
    let tally = run_with_operator(&sim, async {
        sleep(Duration::from_secs(1)).await;
        sim.world().delete_rollout();
        while !sim.world().deleted {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_secs(1)).await;
    });
    assert!(tally.reconciles() > 1);
    assert_eq!(tally.for_rollout(&key), ReconcileCounts::default());
}
