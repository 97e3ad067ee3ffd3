//! Long answers.

use anyhow::{Result, ensure};
use rollora_e2e::{
    conditions::{cleaned_up, served_by, succeeded},
    harness::{Environment, Setup},
    scenario::run_on,
    traffic::{ChatRequest, LoadProfile, ResponseMode as Answer},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    server::ServerKind,
};
use std::time::Duration;

rollora_e2e::on_both_beds!(streams_survive_the_whole_rollout_uncut);

/// Each stream lasts about as long as all steps of the rollout together: some begin before v2 is listed and end when it
/// has everything, and v1 is not unloaded beneath them.
fn streams_survive_the_whole_rollout_uncut<P: Environment>() {
    let servers = vec![ServerKind::simulated(&["--token-millis", "10"]); 3];
    let setup = Setup { servers, ..Setup::guide(Duration::from_millis(700)) };
    run_on::<P>(&setup, async |bed| {
        bed.wait_for_baseline().await?;
        let stream = ChatRequest::new(MODEL, Answer::Sse, 300);
        bed.start_clients(&LoadProfile { connections: vec![stream; 12], interval: Duration::from_millis(10) });
        bed.list_adapter(V2).await?;
        bed.wait_for(served_by(MODEL, V2)).await?;
        bed.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        let record = bed.stop_clients_and_verify().await?;

        let v2_alone = record.routers[0].intervals.iter().find(|spell| spell.weights.iter().all(|(id, _)| id == V2));
        let v2_alone = v2_alone.map(|spell| spell.from);
        let over_the_end = record.exchanges.iter().filter(|it| it.model() == Some(V1) && Some(it.end) > v2_alone);
        ensure!(over_the_end.count() > 0, "no stream of v1 outlived its last weight: {}", record.verdict());
        check_stream_durations(&record.exchanges)
    });
}

fn check_stream_durations(exchanges: &[rollora_e2e::traffic::RequestRecord]) -> Result<()> {
    for exchange in exchanges {
        let took = exchange.end - exchange.start;
        ensure!(took > Duration::from_secs(2), "a stream of 300 tokens took only {took:?}: {exchange:?}");
    }
    Ok(())
}
