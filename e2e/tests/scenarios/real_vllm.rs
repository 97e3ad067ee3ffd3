//! The guide with a real vLLM on the CPU, whose two adapters have other weights.

use crate::numbers::say;
use anyhow::{Context as _, Result, bail, ensure};
use rollora_e2e::{
    bed::{Bed, Place, Setup},
    files::{Entry, RolloutFile},
    judge::Record,
    scenario::on,
    seen::{cleaned_up, every_server_is_ready, loaded_everywhere, served_by, succeeded},
    traffic::{Ask, Crowd, Kind as Answer, Outcome, ask_once},
};
use rollora_testbed::{
    guide::{MODEL, V1, V2},
    server::ServerKind,
};
use std::{path::PathBuf, time::Duration};

rollora_e2e::on_both_beds!(the_guide_on_a_real_vllm_changes_what_the_model_says);

fn the_guide_on_a_real_vllm_changes_what_the_model_says<P: Place>() {
    let Some(home) = std::env::var_os("ROLLORA_VLLM_HOME").map(PathBuf::from) else {
        say("skipped: the guide on a real vLLM, because ROLLORA_VLLM_HOME is not set (`cargo xtask test` sets it)");
        return;
    };
    let setup = Setup {
        servers: vec![ServerKind::Real { home }],
        adapters: vec![Entry::new(V1, "tiny/adapters/a4")],
        rollout: RolloutFile { quiet_for: Duration::from_secs(1), ..RolloutFile::guide(Duration::from_secs(3)) },
        api_key: None,
    };
    on::<P>(&setup, async |bed| {
        let baseline = loaded_everywhere(V1).and(served_by(MODEL, V1)).and(every_server_is_ready());
        bed.sees_within(Duration::from_secs(30), baseline).await?;
        let before = text(bed).await?;
        let (json, sse) = (Ask::new(MODEL, Answer::Json, 2), Ask::new(MODEL, Answer::Sse, 20));
        bed.clients_start(&Crowd { connections: vec![json, sse], pace: Duration::from_millis(100) });
        bed.list_from(V2, "tiny/adapters/a6").await?;
        bed.sees_within(Duration::from_mins(1), served_by(MODEL, V2)).await?;
        let after = text(bed).await?;
        bed.sees_within(Duration::from_mins(1), cleaned_up(V1).and(succeeded(V2))).await?;
        let record = bed.clients_saw_nothing_wrong().await?;
        ensure!(before != after, "v1 and v2 say the same: {before:?}");

        let verdict = record.verdict();
        let both = verdict.by_model.contains_key(V1) && verdict.by_model.contains_key(V2);
        ensure!(both, "not both versions answered: {verdict}");
        let of_v1 = streams_of(&record, V1).next().context("no stream of v1")?;
        let mixed = streams_of(&record, V2).any(|text| text == of_v1);
        ensure!(!mixed, "an answer named v2 has the text of v1: {of_v1:?}");
        Ok(())
    });
}

fn streams_of<'a>(record: &'a Record, id: &'a str) -> impl Iterator<Item = &'a str> {
    let streams = record.exchanges.iter().filter(move |it| it.kind == Answer::Sse && it.model() == Some(id));
    streams.filter_map(|it| match &it.outcome {
        Outcome::Answered { text, .. } => Some(text.as_str()),
        Outcome::Failed(_) => None,
    })
}

async fn text<P: Place>(bed: &Bed<P>) -> Result<String> {
    match ask_once(&bed.place.gateway(), &Ask::new(MODEL, Answer::Json, 8)).await.outcome {
        Outcome::Answered { text, .. } => Ok(text),
        Outcome::Failed(failure) => bail!("not answered: {failure}"),
    }
}
