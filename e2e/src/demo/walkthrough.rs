//! Walks through the guide and prints it. Every line with a check mark was observed to hold.

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

pub(super) struct Walkthrough<'a, E: DemoEnvironment> {
    harness: &'a mut Harness<E>,
    screen: &'a mut Screen,
    setup: &'a DemoSetup,
}

impl<'a, E: DemoEnvironment> Walkthrough<'a, E> {
    pub(super) fn new(harness: &'a mut Harness<E>, screen: &'a mut Screen, setup: &'a DemoSetup) -> Self {
        Self { harness, screen, setup }
    }

    /// Runs the guide from its first step to its last.
    pub(super) async fn run(mut self) -> Result<()> {
        self.run_baseline().await?;
        let first_text = self.response_text().await?;
        self.harness.start_clients(&self.setup.load);
        self.run_rollout().await?;
        let second_text = self.response_text().await?;
        self.run_cleanup().await?;
        if self.setup.uses_real_vllm {
            ensure!(first_text != second_text, "both versions answered with the same text: {first_text:?}");
            self.screen.print_check(&format!("one prompt: {first_text:?} before, {second_text:?} now"));
        }
        self.verify_client().await
    }

    async fn run_baseline(&mut self) -> Result<()> {
        self.screen.print_section("Step 1: baseline", &format!("{} lists {V1}", E::ADAPTERS_SOURCE));
        self.wait_for(loaded_everywhere(V1).and(served_by(MODEL, V1)).and(all_servers_ready())).await?;
        self.screen.print_check(&format!("every server has it, and {MODEL} is served by it"));
        self.print_rollout().await?;
        let count = self.count_and_print().await?;
        ensure!(count.of(V1) == count.total(), "not every request of the baseline was answered by {V1}: {count}");
        Ok(())
    }

    async fn run_rollout(&mut self) -> Result<()> {
        let what = format!("a person adds two lines to {}; the rest is automatic", E::ADAPTERS_SOURCE);
        self.screen.print_section("Step 2: gradual rollout", &what);
        let before = self.harness.environment.adapters_yaml().await?;
        let after = files::list_adapter(&before, &self.setup.v2)?;
        self.harness.environment.write_adapters(&after).await?;
        self.screen.print_diff(&diff_lines(&before, &after));
        self.wait_for(loaded_everywhere(V2)).await?;
        self.screen.print_check("tried on one server, then loaded on every server");
        for (old, new) in [(90, 10), (50, 50)] {
            // The pause begins once every router reports the new rule.
            self.wait_for(traffic_split(MODEL, &[(V1, old), (V2, new)]).and(has_phase(Phase::Paused))).await?;
            self.screen.print_check(&format!("{old} / {new}"));
            self.print_rollout().await?;
            let count = self.count_and_print().await?;
            ensure!(count.of(V1) + count.of(V2) == count.total(), "an unexpected model answered: {count}");
        }
        self.wait_for(served_by(MODEL, V2)).await?;
        self.screen.print_check("0 / 100");
        self.print_rollout().await?;
        let count = self.count_and_print().await?;
        ensure!(count.of(V2) == count.total(), "not every request was answered by {V2}: {count}");
        Ok(())
    }

    async fn run_cleanup(&mut self) -> Result<()> {
        self.screen
            .print_section("Step 3: cleanup", &format!("Rollora edits {} once {V1} is idle", E::ADAPTERS_SOURCE));
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
        ensure!(verdict.is_good(), "requests of the background clients went wrong: {verdict}");
        check_shares(&record)?;
        let (of_v1, of_v2) = (answers_of(&verdict.by_model, V1), answers_of(&verdict.by_model, V2));
        ensure!(of_v1 > 0 && of_v2 > 0, "the background clients did not reach both versions: {verdict}");
        self.screen.print_check(&format!(
            "a client that sent continuously: {} requests, {} errors; v1 answered {of_v1}, v2 {of_v2}",
            verdict.requests,
            verdict.errors.len(),
        ));
        Ok(())
    }

    /// Prints what a person sees who reads the Rollout now.
    async fn print_rollout(&mut self) -> Result<()> {
        for line in self.harness.environment.rollout_view().await? {
            self.screen.print_line(&format!("    {line}"));
        }
        Ok(())
    }

    async fn count_and_print(&mut self) -> Result<SplitCount> {
        self.screen.show_progress("20 requests for the model name that clients use");
        let count = self.harness.count_split().await?;
        self.screen.print_count(&count, &[V1, V2]);
        Ok(count)
    }

    async fn response_text(&mut self) -> Result<String> {
        let record: RequestRecord =
            send_once(&self.harness.environment.gateway(), &ChatRequest::new(MODEL, ResponseMode::Json, 8)).await;
        match record.outcome {
            RequestOutcome::Succeeded { text, .. } => Ok(text),
            RequestOutcome::Failed(failure) => bail!("a request for {MODEL} failed: {failure}"),
        }
    }

    async fn wait_for(&mut self, condition: WaitCondition) -> Result<SystemSnapshot> {
        let screen = &mut *self.screen;
        let on_poll =
            |snapshot: &SystemSnapshot| screen.show_progress(status_message(snapshot).unwrap_or(E::STARTING_MESSAGE));
        let description = format!("not observed: {condition}");
        self.harness.wait_for_with(WAIT_TIMEOUT, condition, on_poll).await.context(description)
    }
}

fn answers_of(by_model: &std::collections::BTreeMap<String, usize>, id: &str) -> usize {
    by_model.get(id).copied().unwrap_or_default()
}

fn check_shares(record: &TrafficRecord) -> Result<()> {
    match record.split_samples().iter().find(|sample| !sample.matches_weights()) {
        Some(sample) => bail!("the split of requests does not match the weights: {sample}"),
        None => Ok(()),
    }
}

/// Returns the status message of the Rollout; `None` if it is empty.
fn status_message(snapshot: &SystemSnapshot) -> Option<&str> {
    snapshot.status.as_ref().ok().map(|status| status.message.as_str()).filter(|message| !message.is_empty())
}
