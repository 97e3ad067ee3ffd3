//! The guide with a real vLLM on the CPU, with two adapters of different weights.

use crate::run_stats::print_line;
use anyhow::{Context as _, Result, bail, ensure};
use rollora_e2e::{
    conditions::{all_servers_ready, cleaned_up, loaded_everywhere, served_by, succeeded},
    files::{ListedAdapter, RolloutManifest},
    harness::{Environment, Harness, Setup},
    oracle::TrafficRecord,
    scenario::run_on,
    traffic::{ChatRequest, LoadProfile, RequestOutcome, ResponseMode, send_once},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    server::ServerKind,
};
use std::{path::PathBuf, time::Duration};

rollora_e2e::in_both_environments!(rollout_on_real_vllm_changes_the_completion);

fn rollout_on_real_vllm_changes_the_completion<E: Environment>() {
    let Some(home) = std::env::var_os("ROLLORA_VLLM_HOME").map(PathBuf::from) else {
        print_line(
            "skipped: the guide on a real vLLM, because ROLLORA_VLLM_HOME is not set (`cargo xtask test` sets it)",
        );
        return;
    };
    let setup = Setup {
        servers: vec![ServerKind::Real { home }],
        adapters: vec![ListedAdapter::new(V1, "tiny/adapters/a4")],
        rollout: RolloutManifest {
            quiet_for: Duration::from_secs(1),
            ..RolloutManifest::guide(Duration::from_secs(3))
        },
        api_key: None,
    };
    run_on::<E>(&setup, async |harness| {
        let baseline = loaded_everywhere(V1).and(served_by(MODEL, V1)).and(all_servers_ready());
        harness.wait_for_within(Duration::from_secs(30), baseline).await?;
        let before = completion_text(harness).await?;
        let (json, sse) =
            (ChatRequest::new(MODEL, ResponseMode::Json, 2), ChatRequest::new(MODEL, ResponseMode::Sse, 20));
        harness.start_clients(&LoadProfile { connections: vec![json, sse], interval: Duration::from_millis(100) });
        harness.list_adapter_from(V2, "tiny/adapters/a6").await?;
        harness.wait_for_within(Duration::from_mins(1), served_by(MODEL, V2)).await?;
        let after = completion_text(harness).await?;
        harness.wait_for_within(Duration::from_mins(1), cleaned_up(V1).and(succeeded(V2))).await?;
        let record = harness.stop_clients_and_verify().await?;
        ensure!(before != after, "v1 and v2 return the same text: {before:?}");

        let verdict = record.verdict();
        let both = verdict.by_model.contains_key(V1) && verdict.by_model.contains_key(V2);
        ensure!(both, "not both versions answered: {verdict}");
        let of_v1 = stream_texts(&record, V1).next().context("no stream of v1")?;
        let mixed = stream_texts(&record, V2).any(|text| text == of_v1);
        ensure!(!mixed, "a response of v2 has the text of v1: {of_v1:?}");
        Ok(())
    });
}

fn stream_texts<'a>(record: &'a TrafficRecord, id: &'a str) -> impl Iterator<Item = &'a str> {
    let streams = record.exchanges.iter().filter(move |it| it.mode == ResponseMode::Sse && it.model() == Some(id));
    streams.filter_map(|it| match &it.outcome {
        RequestOutcome::Succeeded { text, .. } => Some(text.as_str()),
        RequestOutcome::Failed(_) => None,
    })
}

async fn completion_text<E: Environment>(harness: &Harness<E>) -> Result<String> {
    match send_once(&harness.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 8)).await.outcome {
        RequestOutcome::Succeeded { text, .. } => Ok(text),
        RequestOutcome::Failed(failure) => bail!("the request failed: {failure}"),
    }
}
