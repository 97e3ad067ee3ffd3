//! The guide, told while it happens. Every sentence with a mark before it was seen to be true.

use super::{scene::Scene, screen::Screen, stage::Stage};
use crate::{
    bed::Bed,
    files::{self, difference},
    judge::Record,
    seen::{Condition, Seen, cleaned_up, every_server_is_ready, loaded_everywhere, phase, served_by, split, succeeded},
    traffic::{Ask, Count, Exchange, Kind, Outcome, ask_once},
};
use anyhow::{Context as _, Result, bail, ensure};
use rollora_api::rollout::status::Phase;
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

/// Longer than any step of the guide takes.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Story<'a, P: Scene> {
    bed: &'a mut Bed<P>,
    screen: &'a mut Screen,
    stage: &'a Stage,
}

impl<'a, P: Scene> Story<'a, P> {
    pub(super) fn new(bed: &'a mut Bed<P>, screen: &'a mut Screen, stage: &'a Stage) -> Self {
        Self { bed, screen, stage }
    }

    /// From the first line of the guide to its last.
    pub(super) async fn tell(mut self) -> Result<()> {
        self.baseline().await?;
        let first_text = self.text().await?;
        self.bed.clients_start(&self.stage.crowd);
        self.rollout().await?;
        let second_text = self.text().await?;
        self.cleanup().await?;
        if self.stage.real {
            ensure!(first_text != second_text, "the text of the answers did not change: {first_text:?}");
            self.screen.seen(&format!("the same question: {first_text:?} before, {second_text:?} now"));
        }
        self.the_client().await
    }

    async fn baseline(&mut self) -> Result<()> {
        self.screen.part("Step 1: baseline", &format!("{} lists {V1}", P::LIST));
        self.sees(loaded_everywhere(V1).and(served_by(MODEL, V1)).and(every_server_is_ready())).await?;
        self.screen.seen(&format!("every server has it, and {MODEL} is served by it"));
        self.shows().await?;
        let count = self.count().await?;
        ensure!(count.of(V1) == count.total(), "not every request of the baseline was answered by {V1}: {count}");
        Ok(())
    }

    async fn rollout(&mut self) -> Result<()> {
        let what = format!("somebody adds two lines to {}; the rest happens by itself", P::LIST);
        self.screen.part("Step 2: gradual rollout", &what);
        let before = self.bed.place.adapters_file().await?;
        let after = files::list(&before, &self.stage.v2)?;
        self.bed.place.write_adapters(&after).await?;
        self.screen.changes(&difference(&before, &after));
        self.sees(loaded_everywhere(V2)).await?;
        self.screen.seen("tried on one server, then loaded on every server");
        for (old, new) in [(90, 10), (50, 50)] {
            // The pause begins when every router has said that it follows.
            self.sees(split(MODEL, &[(V1, old), (V2, new)]).and(phase(Phase::Paused))).await?;
            self.screen.seen(&format!("{old} / {new}"));
            self.shows().await?;
            let count = self.count().await?;
            ensure!(count.of(V1) + count.of(V2) == count.total(), "somebody else answered: {count}");
        }
        self.sees(served_by(MODEL, V2)).await?;
        self.screen.seen("0 / 100");
        self.shows().await?;
        let count = self.count().await?;
        ensure!(count.of(V2) == count.total(), "not every request was answered by {V2}: {count}");
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        self.screen.part("Step 3: cleanup", &format!("Rollora edits {} when nobody uses {V1} any more", P::LIST));
        let before = self.bed.place.adapters_file().await?;
        self.sees(cleaned_up(V1).and(succeeded(V2))).await?;
        let after = self.bed.place.adapters_file().await?;
        self.screen.changes(&difference(&before, &after));
        self.screen.seen(&format!("{V1} is gone from /v1/models of every server"));
        self.shows().await?;
        Ok(())
    }

    async fn the_client(&mut self) -> Result<()> {
        let record = self.bed.clients_stop().await?;
        let verdict = record.verdict();
        ensure!(verdict.is_good(), "a client that sent requests all the time saw: {verdict}");
        check_shares(&record)?;
        let (of_v1, of_v2) = (answers(&verdict.by_model, V1), answers(&verdict.by_model, V2));
        ensure!(of_v1 > 0 && of_v2 > 0, "not both versions answered the client: {verdict}");
        self.screen.seen(&format!(
            "a client that sent all the time: {} requests, {} errors; v1 answered {of_v1}, v2 {of_v2}",
            verdict.requests,
            verdict.errors.len(),
        ));
        Ok(())
    }

    /// What a person sees who looks at the Rollout now.
    async fn shows(&mut self) -> Result<()> {
        for line in self.bed.place.shown().await? {
            self.screen.line(&format!("    {line}"));
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<Count> {
        self.screen.waiting("20 requests for the name that clients know");
        let count = self.bed.count().await?;
        self.screen.count(&count, &[V1, V2]);
        Ok(count)
    }

    async fn text(&mut self) -> Result<String> {
        let exchange: Exchange = ask_once(&self.bed.place.gateway(), &Ask::new(MODEL, Kind::Json, 8)).await;
        match exchange.outcome {
            Outcome::Answered { text, .. } => Ok(text),
            Outcome::Failed(failure) => bail!("one request for {MODEL} was not answered: {failure}"),
        }
    }

    async fn sees(&mut self, condition: Condition) -> Result<Seen> {
        let screen = &mut *self.screen;
        let tell = |seen: &Seen| screen.waiting(waits_for(seen).unwrap_or(P::STARTS));
        let not_seen = format!("this was not seen to be true: {condition}");
        self.bed.sees_telling(PATIENCE, condition, tell).await.context(not_seen)
    }
}

fn answers(by_model: &std::collections::BTreeMap<String, usize>, id: &str) -> usize {
    by_model.get(id).copied().unwrap_or_default()
}

fn check_shares(record: &Record) -> Result<()> {
    match record.shares().iter().find(|share| !share.fits()) {
        Some(share) => bail!("the versions did not answer as often as their weights say: {share}"),
        None => Ok(()),
    }
}

/// What the Rollout says that it waits for, where it says something.
fn waits_for(seen: &Seen) -> Option<&str> {
    seen.status.as_ref().ok().map(|status| status.message.as_str()).filter(|message| !message.is_empty())
}
