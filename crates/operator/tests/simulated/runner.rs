//! The operator as it runs: it hears of changes, gives way to an abort, and ends when it is told to.

use crate::{
    driver::operator,
    guide::{V1, V2, at_half, installed},
    ports::Sim,
};
use rollora_api::rollout::Verb;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Runs the operator beside a script, in virtual time; the operator has to end when the script has.
fn beside_the_operator<S: Future<Output = ()>>(sim: &Sim, script: S) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (operator, cancel) = (operator(sim), CancellationToken::new());
    runtime.block_on(async {
        let running = operator.run(cancel.clone());
        let script = async {
            script.await;
            cancel.cancel();
        };
        let (ended, ()) = timeout(Duration::from_mins(2), async { tokio::join!(running, script) }).await.unwrap();
        assert_eq!(ended, Ok(()));
    });
}

/// How long it takes until the rewrite says this.
async fn until_weights(sim: &Sim, weights: &[(&str, i32)]) -> Duration {
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
    beside_the_operator(&sim, async {
        // By now a reconcile is in the middle of asking somebody who does not answer.
        sleep(Duration::from_secs(1)).await;
        sim.world().intend(Verb::Abort);
        let took = until_weights(&sim, &[(V1, 100)]).await;
        assert!(took <= Duration::from_millis(250), "{took:?}");
    });
}

#[test]
fn a_change_is_heard_at_once() {
    let sim = at_half().sim;
    beside_the_operator(&sim, async {
        sim.world().intend(Verb::PromoteFull);
        let took = until_weights(&sim, &[(V2, 100)]).await;
        assert!(took <= Duration::from_millis(250), "{took:?}");
    });
}

#[test]
fn an_operator_that_is_told_to_end_ends() {
    let sim = installed().sim;
    beside_the_operator(&sim, async {});
}
