//! Streams that are as long as a rollout.

use anyhow::{Result, ensure};
use rollora_e2e::{
    conditions::{cleaned_up, served_by, succeeded},
    harness::{Environment, Setup},
    scenario::run_on,
    traffic::{ChatRequest, LoadProfile, ResponseMode},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    server::ServerKind,
};
use std::time::Duration;

rollora_e2e::in_both_environments!(streams_survive_the_whole_rollout);

/// Each stream lasts about as long as all steps together: some start before v2 is listed and end when v2 has full
/// weight, and v1 must not be unloaded before they end.
fn streams_survive_the_whole_rollout<E: Environment>() {
    let servers = vec![ServerKind::simulated(&["--token-millis", "10"]); 3];
    let setup = Setup { servers, ..Setup::guide(Duration::from_millis(700)) };
    run_on::<E>(&setup, async |harness| {
        harness.wait_for_baseline().await?;
        let stream = ChatRequest::new(MODEL, ResponseMode::Sse, 300);
        harness.start_clients(&LoadProfile { connections: vec![stream; 12], interval: Duration::from_millis(10) });
        harness.list_adapter(V2).await?;
        harness.wait_for(served_by(MODEL, V2)).await?;
        harness.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        let record = harness.stop_clients_and_verify().await?;

        let v2_alone =
            record.routers[0].intervals.iter().find(|interval| interval.weights.iter().all(|(id, _)| id == V2));
        let v2_alone = v2_alone.map(|interval| interval.from);
        let over_the_end = record.exchanges.iter().filter(|it| it.model() == Some(V1) && Some(it.end) > v2_alone);
        ensure!(over_the_end.count() > 0, "no stream of v1 outlived its last weight: {}", record.verdict());
        check_stream_durations(&record.exchanges)
    });
}

fn check_stream_durations(requests: &[rollora_e2e::traffic::RequestRecord]) -> Result<()> {
    for request in requests {
        let took = request.end - request.start;
        ensure!(took > Duration::from_secs(2), "a stream of 300 tokens took only {took:?}: {request:?}");
    }
    Ok(())
}
