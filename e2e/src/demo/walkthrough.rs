//! The guide, told while it happens. Every sentence with a mark before it was seen to be true.

use super::{environment::DemoEnvironment, screen::Screen, setup::DemoSetup};
use crate::{
    conditions::{
        SystemSnapshot, WaitCondition, all_servers_ready, cleaned_up, has_phase, loaded_everywhere, served_by,
        succeeded, traffic_split,
    },
    files::{self, diff_lines},
    harness::Harness,
    oracle::TrafficRecord,
    traffic::{ChatRequest, RequestOutcome, RequestRecord, ResponseMode, SplitCount, send_once},
};
use anyhow::{Context as _, Result, bail, ensure};
use rollora_api::rollout::status::Phase;
use rollora_testbed::guide::{MODEL, V1, V2};
use std::time::Duration;

/// Longer than any step of the guide takes.
const WAIT_TIMEOUT: Duration = Duration::from_mins(1);

pub(super) struct Walkthrough<'a, P: DemoEnvironment> {
    harness: &'a mut Harness<P>,
    screen: &'a mut Screen,
    setup: &'a DemoSetup,
}

impl<'a, P: DemoEnvironment> Walkthrough<'a, P> {
    pub(super) fn new(harness: &'a mut Harness<P>, screen: &'a mut Screen, setup: &'a DemoSetup) -> Self {
        Self { harness, screen, setup }
    }

    /// From the first line of the guide to its last.
    pub(super) async fn run(mut self) -> Result<()> {
        self.run_baseline().await?;
        let first_text = self.response_text().await?;
        self.harness.start_clients(&self.setup.load);
        self.run_rollout().await?;
        let second_text = self.response_text().await?;
        self.run_cleanup().await?;
        if self.setup.uses_real_vllm {
            ensure!(first_text != second_text, "the text of the answers did not change: {first_text:?}");
            self.screen.print_check(&format!("the same question: {first_text:?} before, {second_text:?} now"));
        }
        self.verify_client().await
    }

    async fn run_baseline(&mut self) -> Result<()> {
        self.screen.print_section("Step 1: baseline", &format!("{} lists {V1}", P::ADAPTERS_SOURCE));
        self.wait_for(loaded_everywhere(V1).and(served_by(MODEL, V1)).and(all_servers_ready())).await?;
        self.screen.print_check(&format!("every server has it, and {MODEL} is served by it"));
        self.print_rollout().await?;
        let count = self.count_and_print().await?;
        ensure!(count.of(V1) == count.total(), "not every request of the baseline was answered by {V1}: {count}");
        Ok(())
    }

    async fn run_rollout(&mut self) -> Result<()> {
        let what = format!("somebody adds two lines to {}; the rest happens by itself", P::ADAPTERS_SOURCE);
        self.screen.print_section("Step 2: gradual rollout", &what);
        let before = self.harness.environment.adapters_yaml().await?;
        let after = files::list_adapter(&before, &self.setup.v2)?;
        self.harness.environment.write_adapters(&after).await?;
        self.screen.print_diff(&diff_lines(&before, &after));
        self.wait_for(loaded_everywhere(V2)).await?;
        self.screen.print_check("tried on one server, then loaded on every server");
        for (old, new) in [(90, 10), (50, 50)] {
            // The pause begins when every router has said that it follows.
            self.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)]).and(has_phase(Phase::Paused))).await?;
            self.screen.print_check(&format!("{old} / {new}"));
            self.print_rollout().await?;
            let count = self.count_and_print().await?;
            ensure!(count.of(V1) + count.of(V2) == count.total(), "somebody else answered: {count}");
        }
        self.wait_for(served_by(MODEL, V2)).await?;
        self.screen.print_check("0 / 100");
        self.print_rollout().await?;
        let count = self.count_and_print().await?;
        ensure!(count.of(V2) == count.total(), "not every request was answered by {V2}: {count}");
        Ok(())
    }

    async fn run_cleanup(&mut self) -> Result<()> {
        self.screen.print_section(
            "Step 3: cleanup",
            &format!("Rollora edits {} when nobody uses {V1} any more", P::ADAPTERS_SOURCE),
        );
        let before = self.harness.environment.adapters_yaml().await?;
        self.wait_for(cleaned_up(V1).and(succeeded(V2))).await?;
        let after = self.harness.environment.adapters_yaml().await?;
        self.screen.print_diff(&diff_lines(&before, &after));
        self.screen.print_check(&format!("{V1} is gone from /v1/models of every server"));
        self.print_rollout().await?;
        Ok(())
    }

    async fn verify_client(&mut self) -> Result<()> {
        let record = self.harness.stop_clients().await?;
        let verdict = record.verdict();
        ensure!(verdict.is_good(), "a client that sent requests all the time saw: {verdict}");
        check_shares(&record)?;
        let (of_v1, of_v2) = (answers_of(&verdict.by_model, V1), answers_of(&verdict.by_model, V2));
        ensure!(of_v1 > 0 && of_v2 > 0, "not both versions answered the client: {verdict}");
        self.screen.print_check(&format!(
            "a client that sent all the time: {} requests, {} errors; v1 answered {of_v1}, v2 {of_v2}",
            verdict.requests,
            verdict.errors.len(),
        ));
        Ok(())
    }

    /// What a person sees who looks at the Rollout now.
    async fn print_rollout(&mut self) -> Result<()> {
        for line in self.harness.environment.rollout_view().await? {
            self.screen.print_line(&format!("    {line}"));
        }
        Ok(())
    }

    async fn count_and_print(&mut self) -> Result<SplitCount> {
        self.screen.show_progress("20 requests for the name that clients know");
        let count = self.harness.count_split().await?;
        self.screen.print_count(&count, &[V1, V2]);
        Ok(count)
    }

    async fn response_text(&mut self) -> Result<String> {
        let exchange: RequestRecord =
            send_once(&self.harness.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 8)).await;
        match exchange.outcome {
            RequestOutcome::Succeeded { text, .. } => Ok(text),
            RequestOutcome::Failed(failure) => bail!("one request for {MODEL} was not answered: {failure}"),
        }
    }

    async fn wait_for(&mut self, condition: WaitCondition) -> Result<SystemSnapshot> {
        let screen = &mut *self.screen;
        let tell = |seen: &SystemSnapshot| screen.show_progress(status_message(seen).unwrap_or(P::STARTING_MESSAGE));
        let not_seen = format!("this was not seen to be true: {condition}");
        self.harness.wait_for_with(WAIT_TIMEOUT, condition, tell).await.context(not_seen)
    }
}

fn answers_of(by_model: &std::collections::BTreeMap<String, usize>, id: &str) -> usize {
    by_model.get(id).copied().unwrap_or_default()
}

fn check_shares(record: &TrafficRecord) -> Result<()> {
    match record.split_samples().iter().find(|share| !share.matches_weights()) {
        Some(share) => bail!("the versions did not answer as often as their weights say: {share}"),
        None => Ok(()),
    }
}

/// What the Rollout says that it waits for, where it says something.
fn status_message(seen: &SystemSnapshot) -> Option<&str> {
    seen.status.as_ref().ok().map(|status| status.message.as_str()).filter(|message| !message.is_empty())
}
